"""Shared functions of kernels on tiles: reading `tables.Tables`, and the update dW of a tile.

Prefixes: i_ index, o_ offsets, m_ mask, p_ pointer, b_ block of values. Addresses are passed as int64 and converted to
pointers on use, so that one launch reads many tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lora_kernels.ops.rounding import load, load_typed, widen
from lora_kernels.ops.tables import FIELDS

W = tl.constexpr(FIELDS.index("w"))
OUT = tl.constexpr(FIELDS.index("out"))
ROWS = tl.constexpr(FIELDS.index("rows"))
COLUMNS = tl.constexpr(FIELDS.index("columns"))
W_ROW = tl.constexpr(FIELDS.index("w_row"))
W_COLUMN = tl.constexpr(FIELDS.index("w_column"))
OUT_ROW = tl.constexpr(FIELDS.index("out_row"))
OUT_COLUMN = tl.constexpr(FIELDS.index("out_column"))
START = tl.constexpr(FIELDS.index("start"))
FIRST = tl.constexpr(FIELDS.index("first"))
COUNT = tl.constexpr(FIELDS.index("count"))
E_ROW = tl.constexpr(FIELDS.index("e_row"))
E_COLUMN = tl.constexpr(FIELDS.index("e_column"))
WIDTH = tl.constexpr(len(FIELDS))


@triton.jit
def job_of(jobs: tl.tensor, owners: tl.tensor, i_program: tl.tensor) -> tl.tensor:
    """Pointer to the fields of the program's job."""
    return jobs + tl.load(owners + i_program).to(tl.int64) * WIDTH


@triton.jit
def place_of(job: tl.tensor, i_program: tl.tensor, BLOCK_COLUMNS: tl.constexpr) -> tl.tensor:
    """Row and column of the program's tile in the grid of tiles of its matrix, int64. Columns vary fastest."""
    i_tile = i_program - tl.load(job + START)
    across = tl.cdiv(tl.load(job + COLUMNS), BLOCK_COLUMNS)
    return i_tile // across, i_tile % across


@triton.jit
def tile_of(
    job: tl.tensor,
    i_program: tl.tensor,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> tl.tensor:
    """Row indices (BLOCK_ROWS,), column indices (BLOCK_COLUMNS,), both int64, and the matrix's rows and columns."""
    i_row, i_column = place_of(job, i_program, BLOCK_COLUMNS)
    o_rows = i_row * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_columns = i_column * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    columns = tl.load(job + COLUMNS)
    if ALIGNED:
        columns = tl.multiple_of(columns, 8)
    return o_rows, o_columns, tl.load(job + ROWS), columns


@triton.jit
def offsets(
    job: tl.tensor,
    o_rows: tl.tensor,
    o_columns: tl.tensor,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> tl.tensor:
    """Offsets of a tile's elements, int64 (rows, columns). ROW, COLUMN: the fields of the strides."""
    # Hints work only for values computed in the same function: those of arguments are lost on inlining.
    row_stride = tl.load(job + ROW)
    if ALIGNED:
        return o_rows[:, None] * tl.multiple_of(row_stride, 8) + o_columns[None, :]
    else:
        return o_rows[:, None] * row_stride + o_columns[None, :] * tl.load(job + COLUMN)


@triton.jit
def load_tile(
    job: tl.tensor,
    o_rows: tl.tensor,
    o_columns: tl.tensor,
    mask: tl.tensor,
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> tl.tensor:
    """The tile of W as stored; 0 if masked. Apply `widen` only on use: until then the tile takes half the registers."""
    return load(tl.load(job + W), offsets(job, o_rows, o_columns, W_ROW, W_COLUMN, ALIGNED), mask, ELEMENT, ALIGNED)


@triton.jit
def adapter_delta(
    factors: tl.tensor,
    i_adapter: tl.tensor,
    o_rows: tl.tensor,
    o_columns: tl.tensor,
    m_rows: tl.tensor,
    m_columns: tl.tensor,
    columns: tl.tensor,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> tl.tensor:
    """B @ A of one adapter on the tile, float32, without its scale, summed over slices of the rank in order.

    NATIVE: multiply the stored elements on the matrix units (bf16 and fp16 products are exact in float32); False to
    widen them first, which the interpreter needs.
    """
    p_adapter = factors + 3 * i_adapter
    b_address = tl.load(p_adapter)
    a_address = tl.load(p_adapter + 1)
    rank = tl.multiple_of(tl.load(p_adapter + 2), 8)
    b_delta = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for start in range(0, rank, BLOCK_RANK):
        o_rank = start + tl.arange(0, BLOCK_RANK).to(tl.int64)
        m_rank = o_rank < rank
        o_b, m_b = o_rows[:, None] * rank + o_rank[None, :], m_rows[:, None] & m_rank[None, :]
        o_a, m_a = o_rank[:, None] * columns + o_columns[None, :], m_rank[:, None] & m_columns[None, :]
        if NATIVE:
            b_b = load_typed(b_address, o_b, m_b, FACTOR, True)
            b_a = load_typed(a_address, o_a, m_a, FACTOR, ALIGNED)
            b_delta = tl.dot(b_b, b_a, b_delta)
        else:
            b_b = widen(load(b_address, o_b, m_b, FACTOR, True), FACTOR)
            b_a = widen(load(a_address, o_a, m_a, FACTOR, ALIGNED), FACTOR)
            b_delta = tl.dot(b_b, b_a, b_delta, input_precision="ieee")
    return b_delta


@triton.jit
def no_sum(adds: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> tl.tensor:
    """-0, to which a sum may be added without a change, since -0 + x is x for every x; +0 if none is. float32 (ROWS,
    COLUMNS). By its bits: Triton takes the number -0.0 for 0."""
    return tl.full((ROWS, COLUMNS), adds.to(tl.uint32) << 31, tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def delta_sum(
    job: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    o_rows: tl.tensor,
    o_columns: tl.tensor,
    m_rows: tl.tensor,
    m_columns: tl.tensor,
    columns: tl.tensor,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> tl.tensor:
    """dW of the tile: scale * (B @ A) of each of the job's adapters, in float32, added in order; +0 without any."""
    first = tl.load(job + FIRST)
    count = tl.load(job + COUNT)
    b_sum = no_sum(count > 0, BLOCK_ROWS, BLOCK_COLUMNS)
    for i_adapter in range(first, first + count):
        b_delta = adapter_delta(
            factors, i_adapter, o_rows, o_columns, m_rows, m_columns, columns,
            FACTOR, NATIVE, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
        )  # fmt: skip
        b_sum += b_delta * tl.load(scales + i_adapter)
    return b_sum
