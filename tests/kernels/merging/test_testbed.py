"""Merges of really trained adapters: against float64, against PEFT in float32, and in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import read_model
from tests.support.oracle import compare_bf16, merge64, read_checkpoint
from tests.support.oracle_lora import merge_lora64, read_adapter64
from tests.support.testbed import require_testbed

# peft 0.21.2 asks transformers 5.23 for an attribute that is being renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ADAPTERS = [
    "lora-r8-qv-python",
    "lora-r16-alllinear-prose",
    "lora-patterns-python",
    "rslora-r16-cheader",
    "lora-embed-prose",
    "lora-lmhead-cheader",
    "series-sql/v1",
    "series-sql/v2",
    "series-sql/v3",
]
UNSUPPORTED = {"prefix-python": "PREFIX_TUNING"}


WEIGHTED = [(name, weight) for name in ADAPTERS for weight in (1.0, 0.37, -1.0)]


# A saved module cannot be weighted: refused, see test_plan.
@pytest.mark.parametrize(
    ("name", "weight"), [case for case in WEIGHTED if case[0] != "lora-lmhead-cheader" or case[1] == 1]
)
def test_equals_the_correctly_rounded_float64_merge(tmp_path: Path, name: str, weight: float) -> None:
    bed = require_testbed()
    report = merge_folder(bed / "base", [(bed / "adapters" / name, weight)], tmp_path / "out")
    right = merge64(bed / "base", bed / "adapters" / name, weight)
    got = read_model(tmp_path / "out")
    differing = elements = beyond = 0
    for tensor, expected in right.items():
        found = compare_bf16(got[tensor][1], expected)
        differing, elements, beyond = (
            differing + found.differing,
            elements + found.elements,
            beyond + found.beyond_float32,
        )
    assert beyond == 0
    assert differing <= elements / 10_000, f"{differing} of {elements}"
    assert {tensor.name for tensor in report.tensors} == set(right)
    before = read_model(bed / "base")
    assert list(got) == list(before)
    for tensor in before.keys() - right.keys():
        np.testing.assert_array_equal(got[tensor][1], before[tensor][1])


@pytest.mark.parametrize("name", list(UNSUPPORTED))
def test_other_types_are_refused_by_name(tmp_path: Path, name: str) -> None:
    bed = require_testbed()
    with pytest.raises(RegistryError, match=UNSUPPORTED[name]) as caught:
        merge_folder(bed / "base", [(bed / "adapters" / name, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("weight", [1.0, 0.37, -1.0])
def test_dora_equals_the_correctly_rounded_float64_merge(tmp_path: Path, weight: float) -> None:
    bed = require_testbed()
    adapter = bed / "adapters" / "dora-r8-sql"
    merge_folder(bed / "base", [(adapter, weight)], tmp_path / "out")
    right = merge_lora64(read_checkpoint(bed / "base"), [read_adapter64(adapter, weight)])
    got = read_model(tmp_path / "out")
    found = [compare_bf16(got[tensor][1], expected) for tensor, expected in right.items()]
    assert len(right) == 28 and sum(part.beyond_float32 for part in found) == 0
    assert sum(part.differing for part in found) <= sum(part.elements for part in found) / 10_000


def test_two_adapters_are_the_sum_of_their_updates(tmp_path: Path) -> None:
    bed = require_testbed()
    weights = {"lora-r8-qv-python": 0.6, "lora-r16-alllinear-prose": -0.4}
    adapters = [(bed / "adapters" / name, weight) for name, weight in weights.items()]
    merge_folder(bed / "base", adapters, tmp_path / "out", dtype="float32")
    base = read_checkpoint(bed / "base")
    expected = dict(base)
    for name, weight in weights.items():
        for tensor, merged in merge64(bed / "base", bed / "adapters" / name, weight).items():
            expected[tensor] = expected[tensor] + (merged.exact - base[tensor])
    for tensor, (dtype, values) in read_model(tmp_path / "out").items():
        assert dtype == "F32"
        np.testing.assert_allclose(values, expected[tensor], rtol=2.0**-24, atol=2e-7)


@pytest.mark.parametrize("name", ADAPTERS)
def test_agrees_with_peft_in_float32(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    bed = require_testbed()
    merge_folder(bed / "base", [(bed / "adapters" / name, 1.0)], tmp_path / "out", dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(bed / "base", dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, bed / "adapters" / name).merge_and_unload().state_dict()
    right = merge64(bed / "base", bed / "adapters" / name)
    for tensor, (_, values) in read_model(tmp_path / "out").items():
        # Both stay within float32's own error of the exact merge; untouched tensors are equal.
        bound = 2 * right[tensor].float32_error if tensor in right else 0
        assert (np.abs(values.astype(np.float64) - merged[tensor].double().numpy()) <= bound).all(), tensor


def test_transformers_loads_the_result_with_the_logits_of_the_unmerged_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    bed = require_testbed()
    adapter = bed / "adapters" / "lora-r16-alllinear-prose"
    merge_folder(bed / "base", [(adapter, 1.0)], tmp_path / "bf16")
    merge_folder(bed / "base", [(adapter, 1.0)], tmp_path / "fp32", dtype="float32")
    assert json.loads((tmp_path / "fp32" / "config.json").read_text())["dtype"] == "float32"

    def load(folder: Path, **options: object) -> object:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()

    text = json.loads((bed / "data" / "prose_eval.jsonl").read_text().splitlines()[0])["text"]
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "bf16")(text, return_tensors="pt").input_ids[:, :200]
    unmerged = peft.PeftModel.from_pretrained(load(bed / "base", dtype=torch.float32), adapter).eval()
    with torch.no_grad():
        want = unmerged(tokens).logits
        wide = load(tmp_path / "fp32")(tokens).logits
        rounded = load(tmp_path / "bf16", dtype=torch.float32)(tokens).logits
        plain = load(bed / "base", dtype=torch.float32)(tokens).logits
    assert load(tmp_path / "fp32").dtype == torch.float32 and load(tmp_path / "bf16").dtype == torch.bfloat16
    assert (wide - want).abs().max() < 1e-4
    # Each weight moved by at most half a step, 2^-9 of itself; that is far less than what the adapter does.
    assert (rounded - want).norm() < 2.0**-7 * want.norm() < (plain - want).norm()
