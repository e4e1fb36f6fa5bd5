"""One kernel for quantized weights in aligned layouts: decode, add B @ A, and round or encode again, in registers.

A program is one warp and has no barrier: a band of 16 rows of W, a number of steps of 64 columns. In a step a thread
holds 8 neighbouring columns of rows g and g + 8 of two tiles of 32 columns, which is at once the accumulator of the
matrix units (`ops.fragments`), 16 bytes of a bf16 W, and a word of eight 4-bit codes. Tiles are 2-D: Triton 3.6 and 3.7
order larger ones differently, and one of them then moves data through shared memory.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from lora_kernels.ops.fragments import load_b
from lora_kernels.ops.merge_low_rank.rows import delta_of_group
from lora_kernels.ops.quantized.kernel import DENSE, FOUR_BIT, INT8, INT8_UNIT
from lora_kernels.ops.quantized.lanes import (
    decode8,
    decode_int8,
    divisor,
    encode8,
    lane_table,
    split8,
)
from lora_kernels.ops.rounding import round_to, rounded, widen

BAND: Final = tl.constexpr(16)
STEP: Final = tl.constexpr(64)
GROUP: Final = tl.constexpr(STEP.value // 2)
# As the bits of float32.
INFINITY: Final = tl.constexpr(0x7F800000)


@triton.jit
def rejoin(b_upper: tl.tensor, b_lower: tl.tensor) -> tl.tensor:
    """A tile of 16 rows and 32 columns from what the words of its upper and its lower 8 rows hold."""
    b_upper, b_lower = tl.reshape(b_upper, (BAND // 2, GROUP)), tl.reshape(b_lower, (BAND // 2, GROUP))
    return tl.reshape(tl.permute(tl.join(b_upper, b_lower), (2, 0, 1)), (BAND, GROUP))


@triton.jit
def halves(b_words: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The upper and the lower 8 of 16 rows of words."""
    upper, lower = tl.split(tl.permute(tl.reshape(b_words, (2, BAND // 2, b_words.shape[1])), (1, 2, 0)))
    return upper, lower


@triton.jit
def eights(b_tile: tl.tensor) -> tl.tensor:
    """A tile with the elements of a thread in a row as a last dimension."""
    return tl.reshape(b_tile, (BAND, 4, 8))


@triton.jit
def dot8(b: tl.tensor, c: tl.tensor) -> tl.tensor:
    """The sum of products along a last dimension of 8, in its order."""
    b0, b1, b2, b3, b4, b5, b6, b7 = split8(b)
    c0, c1, c2, c3, c4, c5, c6, c7 = split8(c)
    low = tl.fma(b3, c3, tl.fma(b2, c2, tl.fma(b1, c1, b0 * c0)))
    return tl.fma(b7, c7, tl.fma(b6, c6, tl.fma(b5, c5, tl.fma(b4, c4, low))))


@triton.jit
def largest8(b: tl.tensor) -> tl.tensor:
    """The bits, int32, of the largest magnitude along a last dimension of 8. NaN is the largest."""
    e0, e1, e2, e3, e4, e5, e6, e7 = split8(tl.abs(b))
    low, high = larger(larger(e0, e1), larger(e2, e3)), larger(larger(e4, e5), larger(e6, e7))
    return larger(low, high).to(tl.int32, bitcast=True)


@triton.jit
def larger(b_one: tl.tensor, b_other: tl.tensor) -> tl.tensor:
    return tl.maximum(b_one, b_other, propagate_nan=tl.PropagateNan.ALL)


# Numbers stay numbers: a stride or count of 1 would be a constant, and one kernel become many.
@triton.jit(do_not_specialize=["rows", "steps", "w_octets", "out_octets", "steps_each", "adapters", "rank"])
def bands_kernel(
    w: tl.tensor,
    absmax: tl.tensor,
    values: tl.tensor,
    nested_absmax: tl.tensor,
    nested_values: tl.tensor,
    offset: tl.tensor,
    out: tl.tensor,
    new_absmax: tl.tensor,
    encoding: tl.tensor,
    factors_b: tl.tensor,
    factors_a: tl.tensor,
    scales: tl.tensor,
    partials: tl.tensor,
    rows: tl.tensor,
    steps: tl.tensor,
    w_octets: tl.tensor,
    out_octets: tl.tensor,
    steps_each: tl.tensor,
    adapters: tl.tensor,
    rank: tl.tensor,
    SCHEME: tl.constexpr,
    ELEMENT: tl.constexpr,
    OUTPUT: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    NESTED: tl.constexpr,
    ENCODE: tl.constexpr,
    FACTOR: tl.constexpr,
    PLANES: tl.constexpr,
    ADD: tl.constexpr,
    HELD: tl.constexpr,
    RANK: tl.constexpr,
    STATS: tl.constexpr,
) -> None:
    """Program (band, segment).

    Args:
        w: words of codes, uint32; or a dense W, bf16 as uint16.
        absmax ... offset: as in `load_weight`.
        out: uint32 words of NF4 codes if ENCODE, else elements, bf16 as uint16.
        new_absmax: float32, if ENCODE.
        encoding: see `lanes.encoding`.
        factors_b, factors_a: see `ops.fragments`, in bands of 16 rows and groups of 32 columns, if ADD.
        scales: float32 (adapters,).
        partials: float32 (programs, 4), see `partials.sums_without_count`, if STATS, which needs ADD.
        rows, steps: of W. steps_each: of a program.
        adapters, rank: their number and rank, unless HELD. HELD, RANK, PLANES: as in `merge_rows_kernel`.
        w_octets, out_octets: strides of rows of a W and an output by rows, in 8 elements.
    """
    i_band, i_segment = tl.program_id(0), tl.program_id(1)
    first_step = i_segment * steps_each
    columns = (steps * STEP).to(tl.int64)
    first = first_step * STEP
    o_rows = i_band * BAND + tl.arange(0, BAND)
    m_rows = o_rows < rows
    # Words of the upper and the lower 8 rows are separate blocks, each with one word or two a thread.
    o_upper = i_band * BAND + tl.arange(0, BAND // 2)
    m_upper, m_lower = (o_upper < rows)[:, None], (o_upper + BAND // 2 < rows)[:, None]
    o_wide, o_upper_wide = o_rows.to(tl.int64)[:, None], o_upper.to(tl.int64)[:, None]
    if SCHEME == DENSE:
        p_w = w + (o_wide * (w_octets * 8) + first + tl.arange(0, GROUP)[None, :])
    else:
        words: tl.constexpr = 4 if SCHEME == FOUR_BIT else 8
        row_words = columns // 8 if SCHEME == FOUR_BIT else w_octets * 2
        p_w = w + (o_upper_wide * row_words + first // STEP * (2 * words) + tl.arange(0, words)[None, :])
        below = row_words.to(tl.int64) * (BAND // 2)
    if SCHEME == FOUR_BIT:
        table = lane_table(values, 16)
        groups = (o_rows * (2 * steps) + 2 * first_step).to(tl.uint32)
        if NESTED:
            mean = tl.load(offset)
    elif SCHEME == INT8:
        b_scale = tl.load(absmax + o_rows.to(tl.int64), m_rows, other=0.0)[:, None]
    if ENCODE:
        codes = lane_table(encoding, 32)
        p_out = out + (o_upper_wide * (columns // 8) + first // 8 + tl.arange(0, 4)[None, :])
        p_absmax = new_absmax + (o_rows.to(tl.int64) * steps + first_step)
    else:
        p_out = out + (o_wide * (out_octets * 8) + first + tl.arange(0, GROUP)[None, :])
    if ADD:
        count = HELD if HELD else adapters
        whole_rank = RANK if HELD else rank
        a_group = count * PLANES * whole_rank * GROUP
        p_a = factors_a + (first_step.to(tl.int64) * (2 * a_group) + tl.arange(0, RANK * GROUP))
        p_b = factors_b + (i_band.to(tl.int64) * (count * PLANES * whole_rank * BAND) + tl.arange(0, RANK * BAND))
        b_held: tl.tuple = ()
        b_scales: tl.tuple = ()
        for i_held in tl.static_range(HELD * PLANES):
            b_held += (load_b(p_b + i_held * RANK * BAND, BAND, RANK, FACTOR),)
        for i_held in tl.static_range(HELD):
            b_scales += (tl.load(scales + i_held),)
    if STATS:
        b_delta2 = tl.zeros((BAND, 4), tl.float32)
        b_real_delta = tl.zeros((BAND, 4), tl.float32)
        b_real2 = tl.zeros((BAND, 4), tl.float32)
        b_largest = tl.zeros((BAND, 4), tl.int32)
    for _ in range(tl.minimum(steps_each, steps - first_step)):
        if SCHEME == DENSE:
            b_w0 = tl.load(p_w, m_rows[:, None], other=0)
            b_w1 = tl.load(p_w + GROUP, m_rows[:, None], other=0)
            p_w += STEP
        else:
            b_upper_0, b_lower_0 = tl.load(p_w, m_upper, other=0), tl.load(p_w + below, m_lower, other=0)
            b_upper_1 = tl.load(p_w + words, m_upper, other=0)
            b_lower_1 = tl.load(p_w + (below + words), m_lower, other=0)
            p_w += 2 * words
        if SCHEME == FOUR_BIT:
            blocks = groups // (BLOCKSIZE // GROUP)
            b_scale = tl.load(absmax + blocks.to(tl.int64), m_rows, other=0)
            if NESTED:
                b_nested = tl.load(nested_absmax + (blocks // NESTED).to(tl.int64), m_rows, other=0.0)
                b_scale = tl.load(nested_values + b_scale.to(tl.int64)) * b_nested + mean
            if STATS:
                # Below the matrix too, what is added is then 0.
                b_scale = tl.where(m_rows, b_scale, 0.0)
            b_scale = b_scale[:, None]
            groups += STEP // GROUP
        if ADD:
            b_delta_0 = delta_of_group(
                p_a, p_b, scales, b_held, b_scales, count, whole_rank,
                FACTOR, PLANES, HELD, RANK, BAND, GROUP,
            )  # fmt: skip
            b_delta_1 = delta_of_group(
                p_a + a_group, p_b, scales, b_held, b_scales, count, whole_rank,
                FACTOR, PLANES, HELD, RANK, BAND, GROUP,
            )  # fmt: skip
            p_a += 2 * a_group
        if SCHEME == DENSE:
            b_0, b_1 = widen(b_w0, ELEMENT), widen(b_w1, ELEMENT)
        elif SCHEME == FOUR_BIT:
            b_0 = rejoin(decode8(b_upper_0, table), decode8(b_lower_0, table)) * b_scale
            b_1 = rejoin(decode8(b_upper_1, table), decode8(b_lower_1, table)) * b_scale
        else:
            b_0 = rejoin(decode_int8(b_upper_0), decode_int8(b_lower_0)) * b_scale * INT8_UNIT
            b_1 = rejoin(decode_int8(b_upper_1), decode_int8(b_lower_1)) * b_scale * INT8_UNIT
        if STATS:
            b_before_0, b_before_1 = b_0, b_1
        if ADD:
            b_0 += b_delta_0
            b_1 += b_delta_1
        if STATS:
            b_delta_0, b_delta_1 = eights(b_delta_0), eights(b_delta_1)
            b_real_0 = eights(round_to(b_0, OUTPUT) - b_before_0)
            b_real_1 = eights(round_to(b_1, OUTPUT) - b_before_1)
            b_delta2 += dot8(b_delta_0, b_delta_0) + dot8(b_delta_1, b_delta_1)
            b_real_delta += dot8(b_real_0, b_delta_0) + dot8(b_real_1, b_delta_1)
            b_real2 += dot8(b_real_0, b_real_0) + dot8(b_real_1, b_real_1)
            b_largest = tl.maximum(b_largest, tl.maximum(largest8(b_delta_0), largest8(b_delta_1)))
        if ENCODE:
            b_0, b_1 = eights(b_0), eights(b_1)
            b_bits = tl.max(tl.maximum(largest8(b_0), largest8(b_1)), axis=1)
            tl.store(p_absmax, b_bits.to(tl.float32, bitcast=True), m_rows)
            p_absmax += 1
            b_factor = tl.math.div_rn(1.0, divisor(b_bits))[:, None, None]
            b_upper_0, b_lower_0 = halves(encode8(b_0 * b_factor, codes))
            b_upper_1, b_lower_1 = halves(encode8(b_1 * b_factor, codes))
            tl.store(p_out, b_upper_0, m_upper)
            tl.store(p_out + columns, b_lower_0, m_lower)
            tl.store(p_out + 4, b_upper_1, m_upper)
            tl.store(p_out + (columns + 4), b_lower_1, m_lower)
            p_out += STEP // 8
        else:
            tl.store(p_out, rounded(b_0, OUTPUT), m_rows[:, None])
            tl.store(p_out + GROUP, rounded(b_1, OUTPUT), m_rows[:, None])
            p_out += STEP
    if STATS:
        p_partials = partials + (i_segment * tl.num_programs(0) + i_band).to(tl.int64) * 4
        tl.store(p_partials, tl.sum(b_delta2))
        tl.store(p_partials + 1, tl.sum(b_real_delta))
        tl.store(p_partials + 2, tl.sum(b_real2))
        # NaN counts as infinity, which is below it.
        tl.store(p_partials + 3, tl.minimum(tl.max(b_largest), INFINITY).to(tl.float32, bitcast=True))
