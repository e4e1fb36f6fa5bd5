"""The merge of a DoRA adapter as two Triton kernels, for any dtypes and layouts: sums of squares of rows, tile by tile,
then scaling of rows. `aligned` has those for aligned matrices of 16 bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import MERGE_DORA, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, TABLE_TYPES, low_rank_constants, on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_dora import aligned
from lora_kernels.ops.rounding import store_rounded, widen
from lora_kernels.ops.single import single
from lora_kernels.ops.tiles import OUT, OUT_COLUMN, OUT_ROW, delta_sum, job_of, load_tile, offsets, place_of, tile_of


@triton.jit
def row_squares_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    squares: tl.tensor,
    ELEMENT: tl.constexpr,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """squares: float32 (tiles per row, rows), the sum of V^2 over the part of a row in each tile."""
    i_program = tl.program_id(0)
    job = job_of(jobs, owners, i_program)
    o_rows, o_columns, rows, columns = tile_of(job, i_program, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
    m_rows, m_columns = o_rows < rows, o_columns < columns
    m_tile = m_rows[:, None] & m_columns[None, :]
    b_w = load_tile(job, o_rows, o_columns, m_tile, ELEMENT, ALIGNED)
    b_delta = delta_sum(
        job, factors, scales, o_rows, o_columns, m_rows, m_columns, columns,
        FACTOR, NATIVE, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
    )  # fmt: skip
    b_v = tl.where(m_tile, widen(b_w, ELEMENT) + b_delta, 0.0)
    _, i_column = place_of(job, i_program, BLOCK_COLUMNS)
    tl.store(squares + i_column * rows + o_rows, tl.sum(b_v * b_v, axis=1), m_rows)


@triton.jit
def scale_rows_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    row_scales: tl.tensor,
    ELEMENT: tl.constexpr,
    OUTPUT: tl.constexpr,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """row_scales: float32 (rows,), the factor of each row of V."""
    i_program = tl.program_id(0)
    job = job_of(jobs, owners, i_program)
    o_rows, o_columns, rows, columns = tile_of(job, i_program, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
    m_rows, m_columns = o_rows < rows, o_columns < columns
    m_tile = m_rows[:, None] & m_columns[None, :]
    b_w = load_tile(job, o_rows, o_columns, m_tile, ELEMENT, ALIGNED)
    b_delta = delta_sum(
        job, factors, scales, o_rows, o_columns, m_rows, m_columns, columns,
        FACTOR, NATIVE, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
    )  # fmt: skip
    b_scale = tl.load(row_scales + o_rows, m_rows, other=0.0)
    b_out = b_scale[:, None] * (widen(b_w, ELEMENT) + b_delta)
    o_out = offsets(job, o_rows, o_columns, OUT_ROW, OUT_COLUMN, ALIGNED)
    store_rounded(tl.load(job + OUT), o_out, b_out, m_tile, OUTPUT, ALIGNED)


def merge(
    w: torch.Tensor, adapter: LowRank, magnitude: torch.Tensor, out: torch.Tensor, *, config: LaunchConfig = MERGE_DORA
) -> None:
    """Merge checked arguments into `out`."""
    laid_out = single(w, out, [adapter], most=1, unroll=aligned.UNROLL, transpose=False)
    if laid_out is not None:
        aligned.merge(laid_out, magnitude)
        return
    table = tables.build([(w, out)], [[adapter]], rows=config.rows, columns=config.columns, transpose=False)
    if not table.programs:
        return
    across = -(-w.shape[1] // config.columns)
    squares = torch.empty((across, w.shape[0]), device=w.device)
    constants = low_rank_constants(table.factor_dtype, config, aligned=table.aligned)
    constants |= {"ELEMENT": ELEMENTS[w.dtype]} | options(config.suited(factor=table.factor_dtype))
    given = (table.jobs, table.factors, table.scales, table.owners)
    with on(w.device):
        row_squares_kernel[(table.programs,)](*given, squares, **constants)
        row_scales = (magnitude.double() / squares.sum(0, dtype=torch.float64).sqrt()).float()
        scale_rows_kernel[(table.programs,)](*given, row_scales, OUTPUT=ELEMENTS[out.dtype], **constants)


def variants() -> list[aot.Variant]:
    """Both passes of both forms."""
    bf16, fp32 = torch.bfloat16, torch.float32
    variants = []
    for w, factor, wide in ((bf16, bf16, False), (bf16, fp32, True), (fp32, fp32, True)):
        name = f"{ELEMENTS[w]}, factors {ELEMENTS[factor]}, {'aligned' if wide else 'any'}"
        constants = low_rank_constants(factor, MERGE_DORA, aligned=wide) | {"ELEMENT": ELEMENTS[w]}
        config = MERGE_DORA.suited(factor=factor)
        variants += [
            aot.Variant(
                f"merge_dora norms {name}", row_squares_kernel, TABLE_TYPES | {"squares": "*fp32"}, constants, config
            ),
            aot.Variant(
                f"merge_dora scale {name}",
                scale_rows_kernel,
                TABLE_TYPES | {"row_scales": "*fp32"},
                constants | {"OUTPUT": ELEMENTS[w]},
                config,
            ),
        ]
    return aligned.variants() + variants
