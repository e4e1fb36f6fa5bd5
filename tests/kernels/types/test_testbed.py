"""The test bed's trained adapters of types beside LoRA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import read_model
from tests.support.oracle import compare_bf16
from tests.support.oracle_types import merge_types
from tests.support.testbed import require_testbed

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
ADAPTER = "ia3-sql"


@pytest.mark.parametrize("weight", [1.0, 0.37])
def test_equals_the_correctly_rounded_float64_merge(tmp_path: Path, weight: float) -> None:
    bed = require_testbed()
    report = merge_folder(bed / "base", [(bed / "adapters" / ADAPTER, weight)], tmp_path / "out")
    right = merge_types(bed / "base", [(bed / "adapters" / ADAPTER, weight)])
    got, before = read_model(tmp_path / "out"), read_model(bed / "base")
    found = [compare_bf16(got[name][1], expected) for name, expected in right.items()]
    assert sum(one.beyond_float32 for one in found) == 0
    assert sum(one.differing for one in found) <= sum(one.elements for one in found) / 10_000
    assert {tensor.name for tensor in report.tensors} == set(right)
    for name in before.keys() - right.keys():
        np.testing.assert_array_equal(got[name][1], before[name][1])


def test_agrees_with_peft_in_float32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    bed = require_testbed()
    merge_folder(bed / "base", [(bed / "adapters" / ADAPTER, 1.0)], tmp_path / "out", dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(bed / "base", dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, bed / "adapters" / ADAPTER).merge_and_unload().state_dict()
    for name, (_, values) in read_model(tmp_path / "out").items():
        # One product an element: both round it once, to the same.
        np.testing.assert_array_equal(values, merged[name].numpy(), err_msg=name)
