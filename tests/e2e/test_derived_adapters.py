"""Composed, extracted, resized and converted adapters: derived by jobs, pulled by the command line, judged in float64,
loaded in PEFT and transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import service
from tests.support.command import ALIAS, TINY, Home
from tests.support.oracle import FLOAT32_UNIT, Float64, merge64, read_checkpoint, read_safetensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore")

LOGS, QUERIES = (TINY / "adapters" / name for name in ("logs", "queries-v1"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A user of a service that holds the tiny base and two adapters of different ranks, patterns and scales."""
    folder = tmp_path_factory.mktemp("derived")
    with service.in_process(folder / "data") as running, service.worker(running, folder / "worker.log"):
        user = Home(folder / "home", running.url)
        user.ok("base", "add", "tiny", TINY / "base", "--alias", ALIAS)
        for name, source in (("logs", LOGS), ("queries", QUERIES)):
            user.ok("push", source, f"acme/{name}", "--base", "tiny")
        yield user


def updates(adapter: Path) -> dict[str, Float64]:
    """dW of each tensor of the base that an adapter changes, in float64."""
    return {name: merged.exact - merged.base for name, merged in merge64(TINY / "base", adapter).items()}


def errors(adapter: Path, others: dict[str, Float64]) -> dict[str, float]:
    """||dW - other|| of each tensor, over the norm of `other`. The tensors must be the same."""
    found = updates(adapter)
    assert found.keys() == others.keys()
    return {name: norm(found[name] - other) / norm(other) for name, other in others.items()}


def norm(values: Float64) -> float:
    return float(np.linalg.norm(values))


def tail(values: Float64, rank: int) -> float:
    """What the best approximation of this rank leaves: sqrt of the energy of all further singular values."""
    return norm(np.linalg.svd(values, compute_uv=False)[rank:])


def pulled(home: Home, ref: str, folder: Path) -> Path:
    home.ok("pull", ref, "-o", folder)
    return folder


def load_in_peft(adapter: Path) -> None:
    """PEFT's own product of each module is that of the files; a forward pass is finite and differs from the base's."""
    base = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)
    ids = torch.arange(48).reshape(2, 24) * 31 % 768
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, adapter).eval()
        adapted = model(input_ids=ids).logits
    assert torch.isfinite(adapted).all()
    assert not torch.allclose(plain, adapted)
    seen = {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default").detach().double().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    expected = updates(adapter)
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        assert norm(seen[name] - value) <= 64 * FLOAT32_UNIT * norm(value), name


def lineage(home: Home, ref: str) -> set[tuple[str, str]]:
    """What a version was made from: (relation, name)."""
    found = home.json("lineage", ref)
    edges = {(edge["relation"], edge["parent"]) for edge in found["edges"] if edge["child"] == found["root"]}
    return {(relation, parent.partition(":")[0]) for relation, parent in edges}


def report(home: Home, ref: str, kind: str) -> dict[str, Any]:
    (found,) = [item for item in home.json("report", ref)["items"] if item["kind"] == kind]
    body: dict[str, Any] = found["body"]
    return body


def test_an_adapter_is_extracted_from_a_merged_model(home: Home, tmp_path: Path) -> None:
    home.ok("merge", "acme/logs", "--to", "acme/logs-merged", "--dtype", "float32")
    merged = pulled(home, "acme/logs-merged", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert model.dtype == torch.float32
    stored = read_checkpoint(merged)
    for name, values in model.state_dict().items():
        assert np.array_equal(values.double().numpy(), stored[name]), name
    done = home.json("extract", "acme/logs-merged", "--base", "tiny", "--rank", "16", "--to", "acme/extracted")
    assert (done["job"]["state"], done["version"]["kind"]) == ("done", "adapter")
    extracted = pulled(home, "acme/extracted", tmp_path / "extracted")
    exact, base = updates(LOGS), read_checkpoint(TINY / "base")
    for name, found in updates(extracted).items():
        # The merge rounded each weight once to float32, and the factors are stored in float32.
        bound = FLOAT32_UNIT * (norm(base[name]) + 64 * norm(exact[name]))
        assert norm(found - exact[name]) <= 2 * bound, name
    assert updates(extracted).keys() == exact.keys()
    load_in_peft(extracted)
    assert lineage(home, "acme/extracted") == {("base", "default/tiny"), ("input", "acme/logs-merged")}
    body = report(home, "acme/extracted", "extract")
    assert len(body["modules"]) == len(exact)
    assert home.json("show", "acme/extracted")["base"]["name"] == "tiny"


def test_a_composition_is_the_best_approximation_of_the_sum(home: Home, tmp_path: Path) -> None:
    home.ok("compose", "acme/logs=0.7", "acme/queries=-0.4", "--rank", "6", "--to", "acme/both:mix")
    both = pulled(home, "acme/both:mix", tmp_path / "both")
    logs, queries = updates(LOGS), updates(QUERIES)
    exact = {
        name: 0.7 * logs.get(name, np.zeros(1)) - 0.4 * queries.get(name, np.zeros(1)) for name in {**logs, **queries}
    }
    for name, error in errors(both, exact).items():
        best = tail(exact[name], 6) / norm(exact[name])
        assert best - 1e-9 <= error <= best * (1 + 1e-6) + 64 * FLOAT32_UNIT, name
    load_in_peft(both)
    assert lineage(home, "acme/both") == {
        ("base", "default/tiny"), ("input", "acme/logs"), ("input", "acme/queries"),
    }  # fmt: skip
    body = report(home, "acme/both", "compose")
    assert (body["method"], len(body["modules"])) == ("svd", len(exact))
    home.ok("merge", "acme/both:mix", "--to", "acme/both-merged", "--dtype", "float32")
    model = AutoModelForCausalLM.from_pretrained(pulled(home, "acme/both-merged", tmp_path / "merged"))
    assert model.dtype == torch.float32


def test_a_resize_is_the_best_approximation_of_its_rank(home: Home, tmp_path: Path) -> None:
    said = home.ok("resize", "acme/logs", "--rank", "3", "--to", "acme/logs-r3:small", "-m", "three")
    assert "acme/logs-r3:v1" in said.out
    assert "MODULE" in said.out
    small, exact = pulled(home, "acme/logs-r3:small", tmp_path / "small"), updates(LOGS)
    for name, error in errors(small, exact).items():
        best = tail(exact[name], 3) / norm(exact[name])
        assert best - 1e-9 <= error <= best * (1 + 1e-6) + 64 * FLOAT32_UNIT, name
    load_in_peft(small)
    assert lineage(home, "acme/logs-r3") == {("base", "default/tiny"), ("input", "acme/logs")}
    body = report(home, "acme/logs-r3", "resize")
    assert len(body["modules"]) == len(exact)
    facts = home.json("show", "acme/logs-r3")["facts"]
    assert (facts["max_rank"], facts["peft_type"]) == (3, "LORA")


@pytest.mark.parametrize("uniform", [False, True])
def test_a_conversion_has_the_same_product_at_a_scale_of_one(home: Home, tmp_path: Path, uniform: bool) -> None:
    name, options = f"acme/logs-plain-{uniform}".lower(), ["--uniform-rank"] if uniform else []
    home.ok("resize", "acme/logs", "--plain", *options, "--to", name)
    plain = pulled(home, name, tmp_path / "plain")
    before, config = (json.loads((folder / "adapter_config.json").read_text()) for folder in (LOGS, plain))
    assert before["use_rslora"]
    assert before["rank_pattern"]
    assert not config["use_rslora"]
    assert config["lora_alpha"] == config["r"]
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert bool(config["rank_pattern"]) is not uniform
    assert max(errors(plain, updates(LOGS)).values()) <= 4 * FLOAT32_UNIT
    load_in_peft(plain)


def test_energy_says_the_rank(home: Home, tmp_path: Path) -> None:
    home.ok("resize", "acme/logs", "--keep-energy", "0.9", "--to", "acme/logs-90")
    kept, exact = pulled(home, "acme/logs-90", tmp_path / "kept"), updates(LOGS)
    for name, error in errors(kept, exact).items():
        assert error**2 <= 0.1 + 1e-6, name
    assert (kept / "adapter_model.safetensors").stat().st_size < (LOGS / "adapter_model.safetensors").stat().st_size


def test_on_this_machine_as_by_the_job(home: Home, tmp_path: Path) -> None:
    home.ok("resize", "acme/logs", "--rank", "5", "--to", "acme/logs-r5")
    by_job = pulled(home, "acme/logs-r5", tmp_path / "by-job")
    here = home.json("resize", "--local", LOGS, "--rank", "5", "-o", tmp_path / "here")
    assert here["schema"] == "lora-reg/resize-local/1"
    names = {file["path"] for file in here["report"]["files"]}
    assert names == {path.name for path in by_job.iterdir()}
    for name in names:
        assert (by_job / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name
    tuned = pulled(home, "acme/logs-merged", tmp_path / "tuned")
    said = home.ok(
        "extract", "--local", tuned, "--base", TINY / "base", "--keep-energy", "0.5", "-o", tmp_path / "half"
    )
    assert "MODULE" in said.out
    assert read_safetensors(tmp_path / "half" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        ["--onto", "nf4"],
        ["--dtype", "bfloat16", "--rounding", "stochastic", "--seed", "3"],
        ["--dtype", "nf4", "--allow-loss"],
    ],
    ids=["onto-nf4", "stochastic", "into-nf4"],
)
def test_a_merge_with_other_numbers_by_a_job_as_on_this_machine(
    home: Home, tmp_path: Path, request: pytest.FixtureRequest, options: list[str]
) -> None:
    name = f"acme/numbers-{request.node.callspec.id}"
    home.ok("merge", "acme/logs", "--to", name, *options)
    by_job = pulled(home, name, tmp_path / "by-job")
    home.ok("merge", "--local", "--base-dir", TINY / "base", LOGS, *options, "-o", tmp_path / "here")
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert names == {path.name for path in by_job.iterdir()}
    for file in names:
        assert (by_job / file).read_bytes() == (tmp_path / "here" / file).read_bytes(), file
    home.ok("merge", "--local", "--base-dir", TINY / "base", LOGS, "--allow-loss", "-o", tmp_path / "plain")
    weights = [path.name for path in (tmp_path / "plain").glob("*.safetensors")]
    assert any((tmp_path / "plain" / file).read_bytes() != (by_job / file).read_bytes() for file in weights)
    assert home.json("show", name)["recipe"]["operation"] == "merge"
