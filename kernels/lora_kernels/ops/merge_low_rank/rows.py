"""The merge of aligned matrices: a warp walks along a block of rows, group by group, with B of its rows in registers.

All adapters of a job are filled up to one rank. B of a few adapters stays in registers; of more, or of higher ranks, it
is read again for each group of columns, slice by slice. float32 factors are three planes of bf16, whose sum they are:
eight of the nine products of planes, the smallest first, leave an error of 2^-34 of each product of two elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lora_kernels.ops.fragments import factor_pointer, in_columns, load_a, load_b, multiply
from lora_kernels.ops.rounding import element_pointer, load_elements, round_to, store_elements, widen
from lora_kernels.ops.tiles import COLUMNS, COUNT, FIRST, OUT, OUT_ROW, ROWS, START, W_ROW, W, job_of, no_sum


@triton.jit
def merge_rows_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    partials: tl.tensor,
    ELEMENT: tl.constexpr,
    OUTPUT: tl.constexpr,
    FACTOR: tl.constexpr,
    PLANES: tl.constexpr,
    HELD: tl.constexpr,
    RANK: tl.constexpr,
    STATS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    PASSES: tl.constexpr,
) -> None:
    """A program merges BLOCK_ROWS rows of a segment of PASSES * GROUPS * WIDTH columns.

    PLANES: matrices that a factor consists of. HELD: number of the job's adapters, all of rank RANK, if their B stays
    in registers; 0 for any number and any multiple of RANK. WHOLE: blocks and passes divide every matrix. partials:
    float32 (programs, 4), see `partials.sums_without_count`; used only with STATS. For the rest see `tables.Tables`
    with an `Arrangement`.
    """
    i_program = tl.program_id(0)
    job = job_of(jobs, owners, i_program)
    rows = tl.load(job + ROWS)
    blocks = tl.cdiv(rows, BLOCK_ROWS).to(tl.int32)
    # Programs of one segment follow each other: they read the same A.
    i_item = (i_program - tl.load(job + START)).to(tl.int32)
    i_segment = i_item // blocks
    i_block = i_item % blocks
    o_rows = i_block.to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    m_rows = (o_rows < rows)[:, None]
    segment: tl.constexpr = PASSES * GROUPS * WIDTH
    first_column = i_segment.to(tl.int64) * segment
    left = tl.multiple_of(tl.minimum(tl.load(job + COLUMNS) - first_column, segment).to(tl.int32), 8)
    o_group = tl.arange(0, WIDTH)[None, :]
    w_row = tl.multiple_of(tl.load(job + W_ROW), 8)
    out_row = tl.multiple_of(tl.load(job + OUT_ROW), 8)
    p_w = element_pointer(tl.load(job + W), ELEMENT) + ((o_rows[:, None] * w_row + first_column) + o_group)
    p_out = element_pointer(tl.load(job + OUT), OUTPUT) + ((o_rows[:, None] * out_row + first_column) + o_group)

    first = tl.load(job + FIRST)
    p_scales = scales + first
    p_factor = factors + 3 * PLANES * first
    b_address = tl.load(p_factor)
    a_address = tl.load(p_factor + 1)
    if HELD:
        count = HELD
        rank = RANK
    else:
        count = tl.load(job + COUNT)
        rank = tl.multiple_of(tl.load(p_factor + 2), RANK)
    b_block = i_block.to(tl.int64) * (count * PLANES * rank * BLOCK_ROWS)
    p_b = factor_pointer(b_address, FACTOR) + b_block + tl.arange(0, RANK * BLOCK_ROWS)
    a_group = count * PLANES * rank * WIDTH
    a_first = (first_column // WIDTH) * a_group
    p_a = factor_pointer(a_address, FACTOR) + a_first + tl.arange(0, RANK * WIDTH)
    b_held: tl.tuple = ()
    b_scales: tl.tuple = ()
    for i_held in tl.static_range(HELD * PLANES):
        b_held += (load_b(p_b + i_held * RANK * BLOCK_ROWS, BLOCK_ROWS, RANK, FACTOR),)
    for i_held in tl.static_range(HELD):
        b_scales += (tl.load(p_scales + i_held),)

    b_delta2 = tl.zeros((BLOCK_ROWS, WIDTH), tl.float32)
    b_realised_delta = tl.zeros((BLOCK_ROWS, WIDTH), tl.float32)
    b_realised2 = tl.zeros((BLOCK_ROWS, WIDTH), tl.float32)
    b_largest = tl.zeros((BLOCK_ROWS, WIDTH), tl.float32)
    for column in range(0, left, GROUPS * WIDTH):
        for i_group in tl.static_range(GROUPS):
            m_group = m_rows & (column + i_group * WIDTH + o_group < left)
            b_w = widen(load_elements(p_w + i_group * WIDTH, m_group, WHOLE), ELEMENT)
            b_delta = delta_of_group(
                p_a + i_group * a_group, p_b, p_scales, b_held, b_scales, count, rank,
                FACTOR, PLANES, HELD, RANK, BLOCK_ROWS, WIDTH,
            )  # fmt: skip
            b_out = b_w + b_delta
            store_elements(p_out + i_group * WIDTH, b_out, m_group, WHOLE, OUTPUT)
            if STATS:
                # Outside the matrix all is 0, or NaN from 0 * infinity, but then the sums inside are not finite either.
                b_realised = round_to(b_out, OUTPUT) - b_w
                b_delta2 = tl.fma(b_delta, b_delta, b_delta2)
                b_realised_delta = tl.fma(b_realised, b_delta, b_realised_delta)
                b_realised2 = tl.fma(b_realised, b_realised, b_realised2)
                b_largest = tl.maximum(b_largest, tl.abs(b_delta))
        p_w += GROUPS * WIDTH
        p_out += GROUPS * WIDTH
        p_a += GROUPS * a_group
    if STATS:
        p_partials = partials + i_program.to(tl.int64) * 4
        delta2 = tl.sum(b_delta2)
        tl.store(p_partials, delta2)
        tl.store(p_partials + 1, tl.sum(b_realised_delta))
        tl.store(p_partials + 2, tl.sum(b_realised2))
        # A maximum drops NaN, a sum does not.
        tl.store(p_partials + 3, tl.where(delta2 == delta2, tl.max(b_largest), float("inf")))


@triton.jit
def delta_of_group(
    p_a: tl.tensor,
    p_b: tl.tensor,
    p_scales: tl.tensor,
    b_held: tl.tuple,
    b_scales: tl.tuple,
    count: tl.tensor,
    rank: tl.tensor,
    FACTOR: tl.constexpr,
    PLANES: tl.constexpr,
    HELD: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """dW of one group of columns: scale * (B @ A) of each adapter in float32, added in order, beginning with the
    first."""
    b_zero = tl.zeros((BLOCK_ROWS, WIDTH), tl.float32)
    if HELD:
        b_delta = b_zero
        for i_held in tl.static_range(HELD):
            p_held = p_a + i_held * PLANES * RANK * WIDTH
            if PLANES == 1:
                b_product = multiply(b_held[i_held], load_a(p_held, RANK, WIDTH, FACTOR), b_zero)
            else:
                b_product = multiply_planes(
                    b_held[3 * i_held], b_held[3 * i_held + 1], b_held[3 * i_held + 2],
                    load_a(p_held, RANK, WIDTH, FACTOR),
                    load_a(p_held + RANK * WIDTH, RANK, WIDTH, FACTOR),
                    load_a(p_held + 2 * RANK * WIDTH, RANK, WIDTH, FACTOR),
                    b_zero,
                )  # fmt: skip
            b_scaled = in_columns(b_product, BLOCK_ROWS, WIDTH) * b_scales[i_held]
            if i_held == 0:
                b_delta = b_scaled
            else:
                b_delta += b_scaled
        return b_delta
    else:
        b_delta = no_sum(count > 0, BLOCK_ROWS, WIDTH)
        for i_adapter in range(count):
            p_adapter_a = p_a + i_adapter * (PLANES * WIDTH * rank)
            p_adapter_b = p_b + i_adapter * (PLANES * BLOCK_ROWS * rank)
            b_product = b_zero
            for start in range(0, rank, RANK):
                p_slice_a = p_adapter_a + start * WIDTH
                p_slice_b = p_adapter_b + start * BLOCK_ROWS
                b_b = load_b(p_slice_b, BLOCK_ROWS, RANK, FACTOR)
                b_a = load_a(p_slice_a, RANK, WIDTH, FACTOR)
                if PLANES == 1:
                    b_product = multiply(b_b, b_a, b_product)
                else:
                    b_product = multiply_planes(
                        b_b,
                        load_b(p_slice_b + rank * BLOCK_ROWS, BLOCK_ROWS, RANK, FACTOR),
                        load_b(p_slice_b + 2 * rank * BLOCK_ROWS, BLOCK_ROWS, RANK, FACTOR),
                        b_a,
                        load_a(p_slice_a + rank * WIDTH, RANK, WIDTH, FACTOR),
                        load_a(p_slice_a + 2 * rank * WIDTH, RANK, WIDTH, FACTOR),
                        b_product,
                    )  # fmt: skip
            b_delta += in_columns(b_product, BLOCK_ROWS, WIDTH) * tl.load(p_scales + i_adapter)
        return b_delta


@triton.jit
def multiply_planes(
    b_high: tl.tensor,
    b_middle: tl.tensor,
    b_low: tl.tensor,
    a_high: tl.tensor,
    a_middle: tl.tensor,
    a_low: tl.tensor,
    b_sum: tl.tensor,
) -> tl.tensor:
    """b_sum + (sum of the planes of B) @ (sum of the planes of A), without the product of the lowest."""
    b_sum = multiply(b_middle, a_low, b_sum)
    b_sum = multiply(b_low, a_middle, b_sum)
    b_sum = multiply(b_middle, a_middle, b_sum)
    b_sum = multiply(b_high, a_low, b_sum)
    b_sum = multiply(b_low, a_high, b_sum)
    b_sum = multiply(b_high, a_middle, b_sum)
    b_sum = multiply(b_middle, a_high, b_sum)
    return multiply(b_high, a_high, b_sum)
