"""The statistics as one Triton kernel, with one program per stretch of a row, whose sums are then added in order.

A stretch is read in steps of independent loads. Squares of bf16 and fp16 are exact in float32: each lane adds the
squares of one step in float32, fewer than `UNROLL` roundings, and the steps in float64. Squares of float32 are exact
only in float64. A stretch with elements that are not finite, or whose squares overflow or lose bits in float32, is read
again, with every element in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import TENSOR_STATS, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, on, options
from lora_kernels.ops.rounding import load, widen
from lora_kernels.ops.tensor_stats.summary import Summary
from lora_kernels.ops.tiles import COLUMNS, W_COLUMN, W_ROW, W, job_of, place_of
from lora_kernels.ops.totals import totals

PARTIALS: Final = 3
NON_FINITE: Final = 2
# Loads of a step: enough bytes in flight to hide the latency of memory.
UNROLL = tl.constexpr(8)
# Bytes that a thread reads in one load.
ACCESS: Final = 16
# Below this the sum of UNROLL squares is finite in float32.
LARGE = tl.constexpr(2.0**62)
# A sum of squares of at least this for each element lost at most 2^-24 of itself to subnormal squares.
SMALL = tl.constexpr(2.0**-126)


@triton.jit
def load_part(
    p_row: tl.tensor,
    start: tl.tensor,
    left: tl.tensor,
    stride: tl.tensor,
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """float32 (BLOCK,), the elements from `start` on of a stretch of `left` elements; 0 behind its end. p_row: address
    of the stretch. stride: int64, in elements."""
    o_columns = start + tl.arange(0, BLOCK)
    if ALIGNED:
        return widen(load(p_row, o_columns, o_columns < left, ELEMENT, ALIGNED), ELEMENT)
    else:
        return widen(load(p_row, o_columns * stride, o_columns < left, ELEMENT, ALIGNED), ELEMENT)


@triton.jit
def tensor_stats_kernel(
    jobs: tl.tensor,
    owners: tl.tensor,
    partials: tl.tensor,
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """partials: float64 (programs, 3), the fields of `Summary`. jobs, owners: `tables.Tables`, with tiles of one row
    and BLOCK_COLUMNS columns. BLOCK: elements per load."""
    i_program = tl.program_id(0)
    job = job_of(jobs, owners, i_program)
    i_row, i_column = place_of(job, i_program, BLOCK_COLUMNS)
    first = i_column * BLOCK_COLUMNS
    left = tl.minimum(tl.load(job + COLUMNS) - first, BLOCK_COLUMNS).to(tl.int32)
    if ALIGNED:
        left = tl.multiple_of(left, 8)
    stride = tl.load(job + W_COLUMN)
    bytes_each: tl.constexpr = ELEMENT.primitive_bitwidth // 8
    p_row = tl.load(job + W) + (i_row * tl.load(job + W_ROW) + first * stride) * bytes_each

    b_squares = tl.zeros((BLOCK,), dtype=tl.float64)
    b_largest = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, left, BLOCK * UNROLL):
        if ELEMENT == tl.float32:
            for i_part in tl.static_range(UNROLL):
                b_part = load_part(p_row, start + i_part * BLOCK, left, stride, ELEMENT, ALIGNED, BLOCK)
                b_wide = b_part.to(tl.float64)
                b_squares = tl.fma(b_wide, b_wide, b_squares)
                b_largest = tl.maximum(b_largest, tl.abs(b_part), propagate_nan=tl.PropagateNan.ALL)
        else:
            b_step = tl.zeros((BLOCK,), dtype=tl.float32)
            for i_part in tl.static_range(UNROLL):
                b_part = load_part(p_row, start + i_part * BLOCK, left, stride, ELEMENT, ALIGNED, BLOCK)
                b_step = tl.fma(b_part, b_part, b_step)
                b_largest = tl.maximum(b_largest, tl.abs(b_part), propagate_nan=tl.PropagateNan.ALL)
            b_squares += b_step.to(tl.float64)
    squares = tl.sum(b_squares)
    # As integers, magnitudes have the same order, with NaN above infinity; the maximum of float32 drops NaN.
    largest = tl.max(b_largest.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    lost = tl.full([], 0, dtype=tl.int32)
    if ELEMENT == tl.float32:
        again = ~(largest < float("inf"))
    else:
        again = ~(largest < LARGE) | ((squares < SMALL * BLOCK_COLUMNS) & (largest > 0))
    if again:
        b_squares = tl.zeros((BLOCK,), dtype=tl.float64)
        b_largest = tl.zeros((BLOCK,), dtype=tl.float32)
        b_lost = tl.zeros((BLOCK,), dtype=tl.int32)
        for start in range(0, left, BLOCK):
            b_part = load_part(p_row, start, left, stride, ELEMENT, ALIGNED, BLOCK)
            m_finite = tl.abs(b_part) < float("inf")
            b_part = tl.where(m_finite, b_part, 0.0)
            b_wide = b_part.to(tl.float64)
            b_squares += b_wide * b_wide
            b_largest = tl.maximum(b_largest, tl.abs(b_part))
            b_lost += tl.where(m_finite, 0, 1)
        squares = tl.sum(b_squares)
        largest = tl.max(b_largest)
        lost = tl.sum(b_lost)
    p_partials = partials + i_program * 3
    tl.store(p_partials, squares)
    tl.store(p_partials + 1, largest.to(tl.float64))
    tl.store(p_partials + 2, lost.to(tl.float64))


def summaries(tensors: Sequence[torch.Tensor]) -> list[Summary]:
    """Statistics of checked tensors of one dtype and on one device."""
    found: list[list[float]] = sums(tensors).tolist()
    return [Summary(squares, largest, int(lost)) for squares, largest, lost in found]


def sums(tensors: Sequence[torch.Tensor], *, config: LaunchConfig = TENSOR_STATS) -> torch.Tensor:
    """The same as float64 (tensors, 3) on their device, without waiting for it."""
    matrices = [_matrix(tensor) for tensor in tensors]
    table = tables.build(
        [(matrix, matrix) for matrix in matrices], [()] * len(matrices), rows=config.rows, columns=config.columns
    )
    partials = torch.empty((table.programs, PARTIALS), dtype=torch.float64, device=table.jobs.device)
    if table.programs:
        with on(table.jobs.device):
            tensor_stats_kernel[(table.programs,)](
                table.jobs, table.owners, partials, **constants(matrices[0].dtype, config, aligned=table.aligned),
                **options(config),
            )  # fmt: skip
    return totals(partials, table.tile_counts, maximum=1)


def constants(dtype: torch.dtype, config: LaunchConfig, *, aligned: bool) -> dict[str, Any]:
    """The compile-time arguments."""
    return {
        "ELEMENT": ELEMENTS[dtype],
        "ALIGNED": aligned,
        "BLOCK_COLUMNS": config.columns,
        "BLOCK": 32 * config.warps * ACCESS // dtype.itemsize,
    }


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements as a matrix, in any order; one row if they are contiguous."""
    packed = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    if packed.is_contiguous():
        return packed.view(1, -1)
    return tensor if tensor.ndim == 2 else tensor.reshape(1, -1)


def variants() -> list[aot.Variant]:
    """All dtypes and layouts."""
    return [
        aot.Variant(
            name=f"tensor_stats {ELEMENTS[element]}, {'aligned' if aligned else 'any'}",
            kernel=tensor_stats_kernel,
            types={"jobs": "*i64", "owners": "*i32", "partials": "*fp64"},
            constants=(given := constants(element, TENSOR_STATS, aligned=aligned)),
            config=TENSOR_STATS,
            steps=TENSOR_STATS.columns // (given["BLOCK"] * UNROLL.value),
            elements=given["BLOCK"] * UNROLL.value,
            offset_bits=32 if aligned else 64,
        )
        for element in ELEMENTS
        for aligned in (True, False)
    ]
