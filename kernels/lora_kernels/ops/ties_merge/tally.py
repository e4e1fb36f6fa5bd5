"""Counting of magnitudes in bins of global memory."""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from lora_kernels.ops.rounding import COMPILED
from lora_kernels.ops.sparse.kernel import magnitude_bits

_TALLY: Final = """{ .reg .pred inside; .reg .b32 bin; .reg .b64 place;
sub.s32 bin, $1, $2; shr.u32 $0, bin, 31; shr.s32 bin, bin, $3; setp.lt.u32 inside, bin, $5;
mad.wide.u32 place, bin, %d, $4; @inside red.relaxed.gpu.global.add.u%d [place], 1; }"""
TALLY_32 = tl.constexpr(_TALLY % (4, 32))
TALLY_64 = tl.constexpr(_TALLY % (8, 64))


@triton.jit
def magnitudes(values: tl.tensor) -> tl.tensor:
    """Bits of |values|, int32."""
    return magnitude_bits(values).to(tl.int32)


@triton.jit
def tally(b_bits: tl.tensor, low: tl.tensor, shift: tl.tensor, counts: tl.tensor, BINS: tl.constexpr) -> tl.tensor:
    """Add 1 to the bin of each element that has one, and return int32 1 for those below the first bin.

    In PTX, since `tl.atomic_add` on a block passes each element through shared memory. b_bits: int32, negative for
    elements that do not count. low, shift: int32 scalars, of `limits.Search`. counts: pointer to BINS numbers, int32
    (two instructions an element less) or int64.
    """
    if COMPILED:
        return tl.inline_asm_elementwise(
            TALLY_64 if counts.dtype.element_ty == tl.int64 else TALLY_32,
            "=r,r,r,r,l,r",
            [b_bits, low, shift, counts.to(tl.int64), BINS],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        b_bins = ((b_bits - low) >> shift).to(tl.int64)
        tl.atomic_add(counts + b_bins, 1, mask=(b_bins >= 0) & (b_bins < BINS), sem="relaxed")
        return (b_bits < low).to(tl.int32)
