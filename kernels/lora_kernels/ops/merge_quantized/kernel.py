"""Dequantizing and merging in Triton.

Aligned layouts go to the kernel on bands (`quantized.bands`); this one, with one program per tile of the matrix, takes
any layout, and statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import MERGE_QUANTIZED, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, TABLE_TYPES, low_rank_constants, on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_low_rank.partials import PARTIALS, read, store_partials, sums, sums_without_count
from lora_kernels.ops.merge_low_rank.stats import MergeStats
from lora_kernels.ops.quantized import Quantized, bands_launch
from lora_kernels.ops.quantized.bands_launch import Form
from lora_kernels.ops.quantized.kernel import FOUR_BIT, INT8, constants, like, load_weight, parts, scheme, types
from lora_kernels.ops.rounding import store_rounded
from lora_kernels.ops.tiles import OUT, OUT_COLUMN, OUT_ROW, delta_sum, job_of, offsets, tile_of


@triton.jit
def merge_quantized_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    partials: tl.tensor,
    packed: tl.tensor,
    absmax: tl.tensor,
    values: tl.tensor,
    nested_absmax: tl.tensor,
    nested_values: tl.tensor,
    offset: tl.tensor,
    OUTPUT: tl.constexpr,
    ADD: tl.constexpr,
    STATS: tl.constexpr,
    SCHEME: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    NESTED: tl.constexpr,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """partials: see `store_partials`; used only with STATS. packed ... offset: see `load_weight`. ADD: False to write W
    itself. For the rest see `tables.Tables`, of one job, and `tiles`."""
    i_program = tl.program_id(0)
    job = job_of(jobs, owners, i_program)
    o_rows, o_columns, rows, columns = tile_of(job, i_program, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
    m_rows, m_columns = o_rows < rows, o_columns < columns
    m_tile = m_rows[:, None] & m_columns[None, :]
    b_w = load_weight(
        job, packed, absmax, values, nested_absmax, nested_values, offset,
        o_rows, o_columns, rows, columns, SCHEME, BLOCKSIZE, NESTED,
    )  # fmt: skip
    b_out = b_w
    if ADD:
        b_delta = delta_sum(
            job, factors, scales, o_rows, o_columns, m_rows, m_columns, columns,
            FACTOR, NATIVE, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
        )  # fmt: skip
        b_out += b_delta
    o_out = offsets(job, o_rows, o_columns, OUT_ROW, OUT_COLUMN, ALIGNED)
    store_rounded(tl.load(job + OUT), o_out, b_out, m_tile, OUTPUT, ALIGNED)
    if STATS:
        store_partials(partials, i_program, b_w, b_delta, b_out, m_tile, OUTPUT)


def merge(weight: Quantized, adapters: Sequence[LowRank], out: torch.Tensor, *, stats: bool) -> MergeStats | None:
    """Merge checked arguments into `out`."""
    if bands_launch.fits(weight, out):
        partials = bands_launch.run(weight, adapters, out, stats=stats)
        return read(sums_without_count(partials, [len(partials)]), [out])[0] if stats else None
    return merge_any(weight, adapters, out, stats=stats)


def merge_any(
    weight: Quantized,
    adapters: Sequence[LowRank] | None,
    out: torch.Tensor,
    *,
    stats: bool = False,
    config: LaunchConfig = MERGE_QUANTIZED,
) -> MergeStats | None:
    """Merge into an output of any layout. adapters: None to write the weight itself."""
    table = tables.build(
        [(like(weight), out)], [adapters or ()],
        rows=config.rows, columns=config.columns, transpose=False, device=weight.device,
    )  # fmt: skip
    partials = torch.empty((table.programs if stats else 0, PARTIALS), device=weight.device)
    if table.programs:
        with on(weight.device):
            merge_quantized_kernel[(table.programs,)](
                table.jobs, table.factors, table.scales, table.owners, partials,
                **parts(weight), **constants(weight),
                **options(config.suited(factor=table.factor_dtype, aligned=False)),
                **low_rank_constants(table.factor_dtype, config, aligned=False),
                OUTPUT=ELEMENTS[out.dtype], ADD=adapters is not None, STATS=stats,
            )  # fmt: skip
    return read(sums(partials, table.tile_counts))[0] if stats else None


def variants() -> list[aot.Variant]:
    """All schemes and layouts, with and without double quantization and statistics."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    aligned = [
        bands_launch.variant("merge_quantized", which, nested, form)
        for which, nested, form in (
            (FOUR_BIT, 256, Form(None, bf16)),
            (FOUR_BIT, 256, Form(None, bf16, rank=64)),
            (FOUR_BIT, 256, Form(None, bf16, held=4)),
            (FOUR_BIT, 256, Form(None, bf16, stats=True)),
            (FOUR_BIT, 256, Form(None, bf16, held=0, rank=64, stats=True)),
            (FOUR_BIT, 256, Form(None, bf16, fp32, stats=True)),
            (FOUR_BIT, 0, Form(None, fp16, fp16)),
            (FOUR_BIT, 256, Form(None, fp32)),
            (INT8, 0, Form(None, bf16)),
            (INT8, 0, Form(None, bf16, stats=True)),
        )
    ]
    return aligned + [
        aot.Variant(
            name=f"merge_quantized {'int8' if which is INT8 else '4-bit'}{', nested' if nested else ''} to "
            f"{ELEMENTS[out]}, factors {ELEMENTS[factor]}, any{', stats' if stats else ''}",
            kernel=merge_quantized_kernel,
            types=TABLE_TYPES | {"partials": "*fp32"} | types(nested=bool(nested)),
            constants=low_rank_constants(factor, MERGE_QUANTIZED, aligned=False)
            | scheme(which, nested=nested)
            | {"OUTPUT": ELEMENTS[out], "ADD": True, "STATS": stats},
            config=MERGE_QUANTIZED.suited(factor=factor, aligned=False),
        )
        for which, nested, out, factor, stats in (
            (FOUR_BIT, 256, bf16, fp32, True),
            (FOUR_BIT, 0, fp32, bf16, False),
            (INT8, 0, fp32, fp32, True),
        )
    ]
