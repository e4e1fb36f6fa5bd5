"""What the merge job stores, tensor by tensor, against an independent merge in float64."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import adapters, service
from tests.support.command import Home
from tests.support.oracle import compare_bf16, merge64, read_checkpoint, round_bf16
from tests.support.oracle_lora import merge_lora64, read_adapter64
from tests.support.testbed import require_testbed

ADAPTERS = (
    "lora-r8-qv-python",
    "lora-r16-alllinear-prose",
    "lora-patterns-python",
    "rslora-r16-cheader",
    "dora-r8-sql",
    "lora-embed-prose",
    "lora-lmhead-cheader",
    "series-sql/v1",
    "series-sql/v2",
    "series-sql/v3",
)
NOT_MERGED = {"prefix-python": "PREFIX_TUNING"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A user of a service that holds the testbed's base."""
    folder, testbed = tmp_path_factory.mktemp("merge"), require_testbed()
    with service.in_process(folder / "data") as running, service.worker(running, folder / "worker.log"):
        user = Home(folder / "home", running.url)
        added = user.run("base", "add", "tiny", testbed / "base", "--alias", "lora-reg-fixture/tiny-llama-4m")
        assert added.status == 0, added.err
        yield user


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_merge_by_the_job_is_the_rounded_float64_merge(home: Home, adapter: str, tmp_path: Path) -> None:
    testbed, name = require_testbed(), adapter.replace("/", "-")
    pushed = home.run("push", testbed / "adapters" / adapter, f"oracle/{name}", "--base", "tiny")
    assert pushed.status == 0, pushed.err
    merged = home.run("merge", f"oracle/{name}", "--to", f"oracle/{name}-merged")
    assert merged.status == 0, merged.err
    pulled = home.run("pull", f"oracle/{name}-merged", "-o", tmp_path / "merged")
    assert pulled.status == 0, pulled.err
    base, result = read_checkpoint(testbed / "base"), read_checkpoint(tmp_path / "merged")
    if adapter.startswith("dora"):
        right = merge_lora64(base, [read_adapter64(testbed / "adapters" / adapter)])
    else:
        right = merge64(testbed / "base", testbed / "adapters" / adapter)
    assert result.keys() == base.keys()
    differing = elements = 0
    for tensor, values in result.items():
        if tensor not in right:
            assert np.array_equal(values, base[tensor]), f"{tensor} is not the base's"
            continue
        bits = round_bf16(values)  # exact: the file holds bfloat16
        compared = compare_bf16(bits, right[tensor])
        assert compared.beyond_float32 == 0, tensor
        differing += compared.differing
        elements += compared.elements
    assert elements >= 393_216
    assert differing * 10_000 <= elements, f"{differing} of {elements}"


@pytest.mark.parametrize("adapter", NOT_MERGED)
def test_what_cannot_be_merged_yet_says_so_by_name(home: Home, adapter: str) -> None:
    pushed = home.run("push", require_testbed() / "adapters" / adapter, f"oracle/{adapter}", "--base", "tiny")
    assert pushed.status == 0, pushed.err
    refused = home.run("merge", f"oracle/{adapter}", "--to", f"oracle/{adapter}-merged")
    assert refused.status == 6
    assert NOT_MERGED[adapter].lower() in refused.err.lower()


@pytest.mark.parametrize("shards", [1, 2])
def test_a_head_that_is_tied_to_the_embedding_becomes_a_tensor_of_its_own(
    home: Home, tmp_path: Path, shards: int
) -> None:
    base = adapters.make_base(tmp_path / "base", tied=True, shards=shards)
    draft = adapters.make_draft(adapters.fingerprint_of(base), rank=4, targets=["q_proj", "lm_head"])
    head = "base_model.model.lm_head.lora_"
    draft.tensors |= {
        f"{head}A.weight": adapters.values((4, 32), seed="A", scale=0.5),
        f"{head}B.weight": adapters.values((96, 4), seed="B", scale=0.5),
    }
    adapter = draft.write(tmp_path / "adapter")
    space = f"tied-{shards}"
    for command in (
        ("base", "add", f"{space}/base", base, "--alias", "lora-reg-fixture/small"),
        ("push", adapter, f"{space}/head", "--base", f"{space}/base"),
        ("merge", f"{space}/head", "--to", f"{space}/merged"),
        ("pull", f"{space}/merged", "-o", tmp_path / "merged"),
    ):
        done = home.run(*command)
        assert done.status == 0, done.err
    before, after = read_checkpoint(base), read_checkpoint(tmp_path / "merged")
    assert after.keys() == {*before, "lm_head.weight"}
    name = "model.embed_tokens.weight"
    assert np.array_equal(after[name], before[name])
    right = merge_lora64({**before, "lm_head.weight": before[name]}, [read_adapter64(adapter)])
    compared = compare_bf16(round_bf16(after["lm_head.weight"]), right["lm_head.weight"])
    assert (compared.beyond_float32, compared.differing) == (0, 0)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    if shards == 2:
        index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
        assert index["weight_map"]["lm_head.weight"] == index["weight_map"][name]
