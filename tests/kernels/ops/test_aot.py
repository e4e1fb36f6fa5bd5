"""Every kernel compiles ahead of time for the H200, and none spills registers to memory. No GPU is needed."""

from __future__ import annotations

import re

import pytest

from lora_kernels.ops.aot import compile_variant
from lora_kernels.ops.dare_merge import kernel as dare_merge
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.merge_dora import kernel as merge_dora
from lora_kernels.ops.merge_low_rank import kernel as merge_low_rank
from lora_kernels.ops.tensor_stats import kernel as tensor_stats
from lora_kernels.ops.ties_merge import kernel as ties_merge

KERNELS = (merge_low_rank, merge_dora, tensor_stats, ties_merge, dare_merge)
VARIANTS = [variant for kernel in KERNELS for variant in kernel.variants()]


@pytest.mark.skipif(interpreted(), reason="kernels are interpreted in this process")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
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
