"""The statistics as one Triton kernel, with one program per range of elements, whose sums are then added in order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import TENSOR_STATS, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, on, options
from lora_kernels.ops.rounding import widen
from lora_kernels.ops.tensor_stats.summary import Summary
from lora_kernels.ops.tiles import job_of, load_tile, tile_of
from lora_kernels.ops.totals import totals

PARTIALS = 3


@triton.jit
def tensor_stats_kernel(
    jobs: tl.tensor,
    owners: tl.tensor,
    partials: tl.tensor,
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
) -> None:
    """partials: float64 (programs, 3), the fields of `Summary`. jobs, owners: `tables.Tables`."""
    i_program = tl.program_id(0)
    job = job_of(jobs, owners, i_program)
    o_rows, o_columns, rows, columns = tile_of(job, i_program, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
    m_tile = (o_rows < rows)[:, None] & (o_columns < columns)[None, :]
    b_values = widen(load_tile(job, o_rows, o_columns, m_tile, ELEMENT, ALIGNED), ELEMENT)
    m_finite = tl.abs(b_values) < float("inf")
    b_values = tl.where(m_finite, b_values, 0.0)
    b_wide = b_values.to(tl.float64)
    p_partials = partials + i_program * 3
    tl.store(p_partials, tl.sum(b_wide * b_wide))
    tl.store(p_partials + 1, tl.max(tl.abs(b_values)).to(tl.float64))
    # Masked elements were loaded as 0, which is finite.
    tl.store(p_partials + 2, tl.sum(tl.where(m_finite, 0, 1)).to(tl.float64))


def summaries(tensors: Sequence[torch.Tensor], *, config: LaunchConfig = TENSOR_STATS) -> list[Summary]:
    """Statistics of checked tensors of one dtype and on one device."""
    matrices = [_matrix(tensor) for tensor in tensors]
    table = tables.build(
        [(matrix, matrix) for matrix in matrices], [()] * len(matrices), rows=config.rows, columns=config.columns
    )
    partials = torch.empty((table.programs, PARTIALS), dtype=torch.float64, device=table.jobs.device)
    if table.programs:
        with on(table.jobs.device):
            tensor_stats_kernel[(table.programs,)](
                table.jobs, table.owners, partials, ELEMENT=ELEMENTS[matrices[0].dtype], ALIGNED=table.aligned,
                BLOCK_ROWS=config.rows, BLOCK_COLUMNS=config.columns, **options(config),
            )  # fmt: skip
    found = totals(partials, table.tile_counts, maximum=1)
    return [Summary(squares, largest, int(lost)) for squares, largest, lost in found]


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
            constants={
                "ELEMENT": ELEMENTS[element],
                "ALIGNED": aligned,
                "BLOCK_ROWS": TENSOR_STATS.rows,
                "BLOCK_COLUMNS": TENSOR_STATS.columns,
            },
            config=TENSOR_STATS,
        )
        for element in ELEMENTS
        for aligned in (True, False)
    ]
