"""Merging and quantizing to NF4 in Triton.

If rows consist of whole blocks of 32 or 64 elements, one kernel reads W and writes codes and absmax. Other blocks
straddle tiles: the merged float32 is written to memory, and a second kernel quantizes it block by block. Double
quantization needs the mean of all absmax and is a small kernel of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import COMPRESS_ROWS, QUANTIZE_BLOCKS, REQUANTIZE, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, TABLE_TYPES, low_rank_constants, on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_low_rank import kernel as merge_low_rank
from lora_kernels.ops.merge_quantized import kernel as merge_quantized
from lora_kernels.ops.quantized import FourBit, Nested, Quantized
from lora_kernels.ops.quantized.kernel import (
    DENSE,
    FOUR_BIT,
    INT8,
    constants,
    fits,
    like,
    load_weight,
    parts,
    scheme,
    types,
)
from lora_kernels.ops.requantize_nf4.blocks import (
    compress_kernel,
    divisor,
    largest,
    nf4_codes,
    pack,
    quantize_blocks_kernel,
)
from lora_kernels.ops.requantize_nf4.mean import mean
from lora_kernels.ops.tiles import delta_sum, job_of, place_of, tile_of
from lora_kernels.quantized.codes import NF4_BOUNDS


@triton.jit
def requantize_nf4_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    bounds: tl.tensor,
    new_packed: tl.tensor,
    new_absmax: tl.tensor,
    packed: tl.tensor,
    absmax: tl.tensor,
    values: tl.tensor,
    nested_absmax: tl.tensor,
    nested_values: tl.tensor,
    offset: tl.tensor,
    NEW_BLOCKSIZE: tl.constexpr,
    SCHEME: tl.constexpr,
    ELEMENT: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    NESTED: tl.constexpr,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """new_packed, new_absmax (float32): outputs; rows of W are whole blocks of NEW_BLOCKSIZE. bounds: see `nf4_codes`.
    packed ... offset: of W, see `load_weight`. For the rest see `tables.Tables`, of one job, and `tiles`."""
    i_program = tl.program_id(0)
    job = job_of(jobs, owners, i_program)
    o_rows, o_columns, rows, columns = tile_of(job, i_program, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
    m_rows, m_columns = o_rows < rows, o_columns < columns
    b_delta = delta_sum(
        job, factors, scales, o_rows, o_columns, m_rows, m_columns, columns,
        FACTOR, NATIVE, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
    )  # fmt: skip
    b_w = load_weight(
        job, packed, absmax, values, nested_absmax, nested_values, offset,
        i_program, o_rows, o_columns, rows, columns,
        SCHEME, ELEMENT, BLOCKSIZE, NESTED, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS,
    )  # fmt: skip
    across: tl.constexpr = BLOCK_COLUMNS // NEW_BLOCKSIZE
    b_blocks = tl.reshape(b_w + b_delta, (BLOCK_ROWS, across, NEW_BLOCKSIZE))
    b_absmax = largest(b_blocks, 2)
    b_divisor = divisor(b_absmax)
    b_scaled = b_blocks * tl.math.div_rn(1.0, b_divisor)[:, :, None]
    b_codes = nf4_codes(bounds, tl.reshape(b_scaled, (BLOCK_ROWS, BLOCK_COLUMNS)))
    _, i_column = place_of(job, i_program, BLOCK_COLUMNS)
    row_blocks = columns // NEW_BLOCKSIZE
    o_blocks = i_column * across + tl.arange(0, across)
    m_blocks = m_rows[:, None] & (o_blocks < row_blocks)[None, :]
    tl.store(new_absmax + (o_rows[:, None] * row_blocks + o_blocks[None, :]), b_absmax, m_blocks)
    row_bytes = columns // 2
    if ALIGNED:
        row_bytes = tl.multiple_of(row_bytes, 16)
    o_bytes = i_column * (BLOCK_COLUMNS // 2) + tl.arange(0, BLOCK_COLUMNS // 2)
    m_bytes = m_rows[:, None] & (o_bytes < row_bytes)[None, :]
    tl.store(
        new_packed + (o_rows[:, None] * row_bytes + o_bytes[None, :]),
        pack(b_codes, BLOCK_ROWS, BLOCK_COLUMNS),
        m_bytes,
    )


def requantize(
    weight: torch.Tensor | Quantized,
    adapters: Sequence[LowRank],
    out: FourBit,
    *,
    config: LaunchConfig = REQUANTIZE,
) -> None:
    """Merge and quantize checked arguments into `out`. config: of the fused kernel."""
    if not out.elements:
        if out.nested is not None:
            out.nested.offset.zero_()
        return
    nested = out.nested
    absmax = out.absmax if nested is None else torch.empty(out.blocks, device=out.device)
    bounds = torch.from_numpy(NF4_BOUNDS).to(out.device)
    with on(out.device):
        if config.columns % out.blocksize == 0 and out.shape[1] % out.blocksize == 0:
            _fused(weight, adapters, out, absmax, bounds, config)
        else:
            _through_memory(weight, adapters, out, absmax, bounds)
        if nested is not None:
            _compress(absmax, out.absmax, nested)


def _fused(
    weight: torch.Tensor | Quantized,
    adapters: Sequence[LowRank],
    out: FourBit,
    absmax: torch.Tensor,
    bounds: torch.Tensor,
    config: LaunchConfig,
) -> None:
    table = tables.build(
        [(like(weight), like(out))], [adapters],
        rows=config.rows, columns=config.columns, transpose=False, device=out.device,
    )  # fmt: skip
    aligned = table.aligned and fits(weight) and fits(out)
    requantize_nf4_kernel[(table.programs,)](
        table.jobs, table.factors, table.scales, table.owners, bounds, out.packed, absmax,
        **parts(weight), **constants(weight), **options(config.suited(factor=table.factor_dtype)),
        **low_rank_constants(table.factor_dtype, config, aligned=aligned), NEW_BLOCKSIZE=out.blocksize,
    )  # fmt: skip


def _through_memory(
    weight: torch.Tensor | Quantized,
    adapters: Sequence[LowRank],
    out: FourBit,
    absmax: torch.Tensor,
    bounds: torch.Tensor,
    config: LaunchConfig = QUANTIZE_BLOCKS,
) -> None:
    merged = torch.empty(out.shape, device=out.device)
    if isinstance(weight, torch.Tensor):
        merge_low_rank.merge([(weight, adapters, merged)], stats=False)
    else:
        merge_quantized.merge(weight, adapters, merged, stats=False)
    rows = config.columns // out.blocksize
    quantize_blocks_kernel[(triton.cdiv(out.blocks, rows),)](
        merged, out.packed, absmax, bounds, out.elements,
        ALIGNED=True, BLOCK_ROWS=rows, BLOCKSIZE=out.blocksize, **options(config),
    )  # fmt: skip


def _compress(
    absmax: torch.Tensor, codes: torch.Tensor, nested: Nested, config: LaunchConfig = QUANTIZE_BLOCKS
) -> None:
    nested.offset.copy_(mean(absmax))
    compress_kernel[(triton.cdiv(nested.absmax.numel(), COMPRESS_ROWS),)](
        absmax, nested.offset, nested.values, codes, nested.absmax, absmax.numel(),
        ALIGNED=absmax.data_ptr() % tables.ALIGNED_BYTES == 0,
        BLOCK_ROWS=COMPRESS_ROWS, BLOCKSIZE=nested.blocksize, **options(config),
    )  # fmt: skip


def variants() -> list[aot.Variant]:
    """The fused kernel for all kinds of W, layouts and both blocksizes; the others for several blocksizes."""
    bf16, fp32 = torch.bfloat16, torch.float32
    fused = [
        _variant(which, element, nested, factor, blocksize, aligned=aligned)
        for which, element, nested, factor, blocksize, aligned in (
            (FOUR_BIT, fp32, 256, bf16, 64, True),
            (FOUR_BIT, fp32, 0, bf16, 64, True),
            (FOUR_BIT, fp32, 0, fp32, 64, False),
            (INT8, fp32, 0, bf16, 64, True),
            (DENSE, bf16, 0, bf16, 64, True),
            (DENSE, bf16, 0, bf16, 32, False),
            (DENSE, fp32, 0, fp32, 32, True),
        )
    ]
    return [*fused, *(_blocks_variant(blocksize) for blocksize in (32, 64, 4096)), _compress_variant()]


def _variant(
    which: tl.constexpr, element: torch.dtype, nested: int, factor: torch.dtype, blocksize: int, *, aligned: bool
) -> aot.Variant:
    names = {FOUR_BIT: "4-bit", INT8: "int8", DENSE: str(ELEMENTS[element])}
    more: dict[str, Any] = {"NEW_BLOCKSIZE": blocksize}
    return aot.Variant(
        name=f"requantize_nf4 {names[which]}{', nested' if nested else ''} to blocks of {blocksize}, "
        f"factors {ELEMENTS[factor]}, {'aligned' if aligned else 'any'}",
        kernel=requantize_nf4_kernel,
        types=TABLE_TYPES
        | {"bounds": "*fp32", "new_packed": "*u8", "new_absmax": "*fp32"}
        | types(nested=bool(nested)),
        constants=low_rank_constants(factor, REQUANTIZE, aligned=aligned)
        | scheme(which, element=element, nested=nested)
        | more,
        config=REQUANTIZE.suited(factor=factor),
    )


def _blocks_variant(blocksize: int) -> aot.Variant:
    return aot.Variant(
        name=f"requantize_nf4 blocks of {blocksize}",
        kernel=quantize_blocks_kernel,
        types={"merged": "*fp32", "packed": "*u8", "absmax": "*fp32", "bounds": "*fp32", "elements": "i64"},
        constants={
            "ALIGNED": True,
            "BLOCK_ROWS": QUANTIZE_BLOCKS.columns // blocksize,
            "BLOCKSIZE": blocksize,
        },
        config=QUANTIZE_BLOCKS,
    )


def _compress_variant() -> aot.Variant:
    return aot.Variant(
        name="requantize_nf4 double quantization",
        kernel=compress_kernel,
        types={
            "absmax": "*fp32", "offset": "*fp32", "table": "*fp32", "codes": "*u8", "nested": "*fp32", "blocks": "i64",
        },
        constants={"ALIGNED": True, "BLOCK_ROWS": COMPRESS_ROWS, "BLOCKSIZE": 256},
        config=QUANTIZE_BLOCKS,
    )  # fmt: skip
