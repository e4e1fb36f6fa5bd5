"""Every kernel compiles ahead of time for the H200, and none spills registers to memory. No GPU is needed."""

from __future__ import annotations

import re

import pytest

from lora_kernels.ops.aot import compile_variant
from lora_kernels.ops.catalog import variants
from lora_kernels.ops.dispatch import interpreted


@pytest.mark.skipif(interpreted(), reason="kernels are interpreted in this process")
@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_compiles_without_spills(variant):
    cost = compile_variant(variant)
    assert cost.spill_bytes == 0
    assert cost.registers <= 255
    if variant.constants["ALIGNED"] and "ELEMENT" in variant.constants:
        assert cost.wide, "an aligned layout is not read 16 bytes at a time"
    # Offsets of blocks of elements, at which the tensors of a checkpoint may lie past 2^31.
    offsets = re.findall(r"tt\.addptr .*: tensor<\d+x\d+x!tt\.ptr<\w+>>, tensor<\d+x\d+x(\w+)>", cost.ir)
    assert offsets
    assert set(offsets) == {"i64"}
