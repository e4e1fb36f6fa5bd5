"""Every kernel compiles ahead of time for the H200, and none spills registers to memory. No GPU is needed."""

from __future__ import annotations

import re

import pytest

from lora_kernels.ops.all_kernels import variants
from lora_kernels.ops.aot import compile_variant
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.quantized.kernel import DENSE, FOUR_BIT, INT8


@pytest.mark.skipif(interpreted(), reason="kernels are interpreted in this process")
@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_compiles_without_spills(variant):
    cost = compile_variant(variant)
    assert cost.spill_bytes == 0
    assert cost.registers <= 255
    if variant.constants.get("ALIGNED") and "ELEMENT" in variant.constants:
        assert max(size for _, size in cost.accesses) >= min(16, _share(variant)), cost.accesses
        assert ("st", 1) not in cost.accesses, "an aligned result is written byte by byte"
        # Codes of 8 bits of a nested absmax: one for each group, whatever the layout.
        assert ("ld", 1) not in cost.accesses or variant.constants.get("NESTED"), "read byte by byte"
    # Offsets of blocks of elements, at which the tensors of a checkpoint may lie past 2^31.
    offsets = _offsets(cost.ir, r"\d+x\d+x") or _offsets(cost.ir, r"\d+x")
    assert offsets
    assert set(offsets) == {f"i{variant.offset_bits}"}


def _offsets(ir, shape):
    return re.findall(rf"tt\.addptr .*: tensor<{shape}!tt\.ptr<\w+>>, tensor<{shape}(\w+)>", ir)


def _share(variant):
    """Bytes of W that fall to a thread."""
    constants, config = variant.constants, variant.config
    scheme = constants.get("SCHEME", DENSE.value)
    bits = {DENSE.value: constants["ELEMENT"].primitive_bitwidth, INT8.value: 8, FOUR_BIT.value: 4}[scheme]
    return config.rows * config.columns // (32 * config.warps) * bits // 8
