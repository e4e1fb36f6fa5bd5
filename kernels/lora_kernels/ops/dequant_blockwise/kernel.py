"""Dequantization as one Triton kernel, with one program per tile of the matrix."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import DEQUANTIZE, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, on, options
from lora_kernels.ops.quantized import Quantized
from lora_kernels.ops.quantized.kernel import FOUR_BIT, INT8, constants, fits, like, load_weight, parts, scheme, types
from lora_kernels.ops.rounding import store_rounded
from lora_kernels.ops.tiles import OUT, OUT_COLUMN, OUT_ROW, job_of, offsets, tile_of


@triton.jit
def dequant_blockwise_kernel(
    jobs: tl.tensor,
    owners: tl.tensor,
    packed: tl.tensor,
    absmax: tl.tensor,
    values: tl.tensor,
    nested_absmax: tl.tensor,
    nested_values: tl.tensor,
    offset: tl.tensor,
    OUTPUT: tl.constexpr,
    SCHEME: tl.constexpr,
    ELEMENT: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    NESTED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
) -> None:
    """packed ... offset: see `load_weight`. jobs, owners: `tables.Tables` of one job."""
    i_program = tl.program_id(0)
    job = job_of(jobs, owners, i_program)
    o_rows, o_columns, rows, columns = tile_of(job, i_program, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
    b_w = load_weight(
        job, packed, absmax, values, nested_absmax, nested_values, offset,
        i_program, o_rows, o_columns, rows, columns,
        SCHEME, ELEMENT, BLOCKSIZE, NESTED, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS,
    )  # fmt: skip
    m_tile = (o_rows < rows)[:, None] & (o_columns < columns)[None, :]
    o_out = offsets(job, o_rows, o_columns, OUT_ROW, OUT_COLUMN, ALIGNED)
    store_rounded(tl.load(job + OUT), o_out, b_w, m_tile, OUTPUT, ALIGNED)


def dequantize(weight: Quantized, out: torch.Tensor, *, config: LaunchConfig = DEQUANTIZE) -> None:
    """Dequantize a checked weight into `out`."""
    table = tables.build(
        [(like(weight), out)], [()],
        rows=config.rows, columns=config.columns, transpose=False, device=weight.device,
    )  # fmt: skip
    if table.programs:
        aligned = table.aligned and fits(weight)
        with on(weight.device):
            dequant_blockwise_kernel[(table.programs,)](
                table.jobs, table.owners, **parts(weight), **constants(weight),
                **options(config.suited(aligned=aligned)),
                OUTPUT=ELEMENTS[out.dtype], ALIGNED=aligned,
                BLOCK_ROWS=config.rows, BLOCK_COLUMNS=config.columns,
            )  # fmt: skip


def variants() -> list[aot.Variant]:
    """All schemes and layouts, with and without double quantization."""
    return [
        aot.Variant(
            name=f"dequant_blockwise {'int8' if which is INT8 else '4-bit'}{', nested' if nested else ''} to "
            f"{ELEMENTS[out]}, {'aligned' if aligned else 'any'}",
            kernel=dequant_blockwise_kernel,
            types={"jobs": "*i64", "owners": "*i32"} | types(nested=bool(nested)),
            constants=scheme(which, nested=nested)
            | {
                "OUTPUT": ELEMENTS[out],
                "ALIGNED": aligned,
                "BLOCK_ROWS": DEQUANTIZE.rows,
                "BLOCK_COLUMNS": DEQUANTIZE.columns,
            },
            config=DEQUANTIZE.suited(aligned=aligned),
        )
        for which, nested, out, aligned in (
            (FOUR_BIT, 256, torch.bfloat16, True),
            (FOUR_BIT, 0, torch.float16, True),
            (FOUR_BIT, 256, torch.float32, False),
            (INT8, 0, torch.bfloat16, True),
            (INT8, 0, torch.float32, False),
        )
    ]
