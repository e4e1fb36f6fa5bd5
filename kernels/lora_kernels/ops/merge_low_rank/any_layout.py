"""The merge of matrices of any layout, with one program per tile: what `rows` cannot walk along."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import MERGE_LOW_RANK, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, TABLE_TYPES, low_rank_constants, on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_low_rank.partials import PARTIALS, store_partials, sums
from lora_kernels.ops.rounding import store_rounded, widen
from lora_kernels.ops.tiles import OUT, OUT_COLUMN, OUT_ROW, delta_sum, job_of, load_tile, offsets, tile_of

Item = tuple[torch.Tensor, Sequence[LowRank], torch.Tensor]


@triton.jit
def merge_low_rank_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    partials: tl.tensor,
    ELEMENT: tl.constexpr,
    OUTPUT: tl.constexpr,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    STATS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """partials: see `store_partials`; used only with STATS. For the rest see `tables.Tables` and `tiles`."""
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
    b_w = widen(b_w, ELEMENT)
    b_out = b_w + b_delta
    o_out = offsets(job, o_rows, o_columns, OUT_ROW, OUT_COLUMN, ALIGNED)
    store_rounded(tl.load(job + OUT), o_out, b_out, m_tile, OUTPUT, ALIGNED)
    if STATS:
        store_partials(partials, i_program, b_w, b_delta, b_out, m_tile, OUTPUT)


def launch(items: Sequence[Item], *, stats: bool, config: LaunchConfig = MERGE_LOW_RANK) -> torch.Tensor | None:
    """Merge checked items (W, adapters, output), with one dtype of W and one of outputs. Returns `partials.sums` if
    statistics are requested."""
    table = tables.build(
        [(w, out) for w, _, out in items], [group for _, group, _ in items], rows=config.rows, columns=config.columns
    )
    partials = torch.empty((table.programs if stats else 0, PARTIALS), device=table.jobs.device)
    if table.programs:
        with on(table.jobs.device):
            merge_low_rank_kernel[(table.programs,)](
                table.jobs, table.factors, table.scales, table.owners, partials,
                **low_rank_constants(table.factor_dtype, config, aligned=table.aligned),
                **options(config.suited(factor=table.factor_dtype)), STATS=stats,
                ELEMENT=ELEMENTS[items[0][0].dtype], OUTPUT=ELEMENTS[items[0][2].dtype],
            )  # fmt: skip
    return sums(partials, table.tile_counts) if stats else None


def variants() -> list[aot.Variant]:
    """All dtypes of W, of the output and of the factors, with and without statistics. Aligned if elements of W and of
    the output differ in size."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        _variant(w, out, factor, aligned=aligned, stats=stats)
        for w, out, factor, aligned, stats in (
            (bf16, bf16, bf16, False, True),
            (bf16, fp32, bf16, True, True),
            (bf16, fp32, fp32, False, True),
            (fp16, fp16, fp32, False, False),
            (fp32, bf16, bf16, True, True),
        )
    ]


def _variant(w: torch.dtype, out: torch.dtype, factor: torch.dtype, *, aligned: bool, stats: bool) -> aot.Variant:
    types = f"{ELEMENTS[w]} to {ELEMENTS[out]}, factors {ELEMENTS[factor]}"
    return aot.Variant(
        name=f"merge_low_rank {types}, {'aligned' if aligned else 'any'}{', stats' if stats else ''}",
        kernel=merge_low_rank_kernel,
        types=TABLE_TYPES | {"partials": "*fp32"},
        constants=low_rank_constants(factor, MERGE_LOW_RANK, aligned=aligned)
        | {"ELEMENT": ELEMENTS[w], "OUTPUT": ELEMENTS[out], "STATS": stats},
        config=MERGE_LOW_RANK.suited(factor=factor),
    )
