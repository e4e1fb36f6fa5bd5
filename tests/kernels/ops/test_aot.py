"""Every kernel compiles ahead of time for the H200, and none spills registers to memory. No GPU is needed."""

from __future__ import annotations

import pytest

from lora_kernels.ops.aot import compile_variant
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.merge_low_rank import kernel as merge_low_rank

VARIANTS = [variant for kernel in (merge_low_rank,) for variant in kernel.variants()]


@pytest.mark.skipif(interpreted(), reason="kernels are interpreted in this process")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_compiles_without_spills(variant):
    cost = compile_variant(variant)
    assert cost.spill_bytes == 0
    assert cost.registers <= 255
    if variant.constants.get("ALIGNED"):
        assert cost.wide, "an aligned layout is not read 16 bytes at a time"
