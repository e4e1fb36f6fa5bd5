"""Merging and quantizing to NF4 in Triton.

Aligned layouts go to the kernel on bands (`quantized.bands`), which reads W and writes codes and absmax. For others the
merged float32 is written to memory, and a second kernel quantizes it block by block. Double quantization needs the mean
of all absmax and is a small kernel of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import COMPRESS_ROWS, QUANTIZE_BLOCKS, LaunchConfig
from lora_kernels.ops.launch import on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_low_rank import kernel as merge_low_rank
from lora_kernels.ops.merge_quantized import kernel as merge_quantized
from lora_kernels.ops.quantized import FourBit, Nested, Quantized, bands_launch
from lora_kernels.ops.quantized.bands_launch import Form
from lora_kernels.ops.quantized.kernel import DENSE, FOUR_BIT, INT8
from lora_kernels.ops.quantized.lanes import encoding
from lora_kernels.ops.requantize_nf4.blocks import compress_kernel, quantize_blocks_kernel
from lora_kernels.ops.requantize_nf4.mean import mean


def requantize(weight: torch.Tensor | Quantized, adapters: Sequence[LowRank], out: FourBit) -> None:
    """Merge and quantize checked arguments into `out`."""
    if not out.elements:
        if out.nested is not None:
            out.nested.offset.zero_()
        return
    nested = out.nested
    absmax = out.absmax if nested is None else torch.empty(out.blocks, device=out.device)
    if bands_launch.fits(weight, out):
        bands_launch.run(weight, adapters or None, out, absmax=absmax)
    else:
        _through_memory(weight, adapters, out, absmax)
    if nested is not None:
        _compress(absmax, out.absmax, nested)


def _through_memory(
    weight: torch.Tensor | Quantized,
    adapters: Sequence[LowRank],
    out: FourBit,
    absmax: torch.Tensor,
    config: LaunchConfig = QUANTIZE_BLOCKS,
) -> None:
    merged = torch.empty(out.shape, device=out.device)
    if isinstance(weight, torch.Tensor) and not adapters:
        merged.copy_(weight)
    elif isinstance(weight, torch.Tensor):
        merge_low_rank.merge([(weight, adapters, merged)], stats=False)
    else:
        merge_quantized.merge(weight, adapters, merged, stats=False)
    rows = config.columns // out.blocksize
    with on(out.device):
        quantize_blocks_kernel[(triton.cdiv(out.blocks, rows),)](
            merged, out.packed, absmax, encoding(out.device), out.elements,
            BLOCK_ROWS=rows, BLOCKSIZE=out.blocksize, **options(config),
        )  # fmt: skip


def _compress(
    absmax: torch.Tensor, codes: torch.Tensor, nested: Nested, config: LaunchConfig = QUANTIZE_BLOCKS
) -> None:
    nested.offset.copy_(mean(absmax))
    with on(codes.device):
        compress_kernel[(triton.cdiv(nested.absmax.numel(), COMPRESS_ROWS),)](
            absmax, nested.offset, nested.values, codes, nested.absmax, absmax.numel(),
            ALIGNED=absmax.data_ptr() % tables.ALIGNED_BYTES == 0,
            BLOCK_ROWS=COMPRESS_ROWS, BLOCKSIZE=nested.blocksize, **options(config),
        )  # fmt: skip


def variants() -> list[aot.Variant]:
    """The kernel on bands for all kinds of W, with and without adapters; the others for several blocksizes."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    bands = [
        bands_launch.variant("requantize_nf4", which, nested, form)
        for which, nested, form in (
            (FOUR_BIT, 256, Form(None, None)),
            (FOUR_BIT, 0, Form(None, None, rank=64)),
            (FOUR_BIT, 256, Form(None, None, fp32, held=0, rank=64)),
            (INT8, 0, Form(None, None)),
            (DENSE, 0, Form(bf16, None)),
            (DENSE, 0, Form(bf16, None, add=False)),
            (DENSE, 0, Form(fp16, None, fp16)),
            (DENSE, 0, Form(fp32, None, add=False)),
        )
    ]
    return [*bands, *(_blocks_variant(blocksize) for blocksize in (32, 64, 4096)), _compress_variant()]


def _blocks_variant(blocksize: int) -> aot.Variant:
    return aot.Variant(
        name=f"requantize_nf4 blocks of {blocksize}",
        kernel=quantize_blocks_kernel,
        types={"merged": "*fp32", "packed": "*u8", "absmax": "*fp32", "encoding": "*fp32", "elements": "i64"},
        constants={
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
