"""NF4 of W + sum_i scale_i * B_i A_i: merge and quantize, for a dense or quantized W.

Codes are bitwise equal to those of bitsandbytes 0.50.2: the merged float32 times the reciprocal of its block's absmax,
midpoints to the smaller. Double quantization follows `docs/decisions/0007-nf4-that-we-write.md`: the mean in float64,
rounded once; the nearest 8-bit codes. If W was NF4 already, most of a small update is lost (`docs/quantized-bases.md`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.dispatch import Backend, choose
from lora_kernels.ops.low_rank import LowRank, check_adapters, check_weight
from lora_kernels.ops.quantized import (
    FourBit,
    Nested,
    Quantized,
    check_blocksize,
    check_four_bit,
    check_quantized,
    refused,
)
from lora_kernels.quantized.blocksizes import NESTED_BLOCKSIZE
from lora_kernels.quantized.codes import NF4, dynamic_map

__all__ = ["empty_nf4", "requantize_nf4"]


def requantize_nf4(
    weight: torch.Tensor | Quantized,
    adapters: Sequence[LowRank] = (),
    *,
    blocksize: int = 64,
    nested: bool = True,
    out: FourBit | None = None,
    backend: Backend | None = None,
) -> FourBit:
    """Merge and quantize. The merged weights must be finite: others give their blocks an absmax that is not finite.

    Raises RegistryError `invalid-request` for invalid arguments, `unsupported` if Triton is requested and cannot run.

    Args:
        weight: (o, i), bf16, fp16 or fp32 with any strides, or quantized.
        blocksize, nested: of the output; nested is double quantization. Ignored if `out` is given.
        out: from `empty_nf4`, must not share memory with the inputs; None to allocate it.
        backend: None to choose it by the weight's device.
    """
    if isinstance(weight, torch.Tensor):
        check_weight(weight)
    else:
        check_quantized(weight)
    check_adapters(weight, adapters)
    rows, columns = weight.shape
    if out is None:
        out = empty_nf4((rows, columns), blocksize=blocksize, nested=nested, device=weight.device)
    check_four_bit(out, name="the output")
    if out.shape != (rows, columns) or out.device != weight.device:
        raise refused(f"The output is {out.shape} on {out.device}; expected {(rows, columns)} on {weight.device}.")
    if out.nested is not None and out.nested.blocksize != NESTED_BLOCKSIZE:
        raise refused(f"The nested blocksize of the output is {out.nested.blocksize}; expected {NESTED_BLOCKSIZE}.")
    if choose(weight.device, backend) == "triton":
        from lora_kernels.ops.requantize_nf4 import kernel

        kernel.requantize(weight, adapters, out)
    else:
        from lora_kernels.ops.requantize_nf4 import in_torch as reference

        reference.requantize(weight, adapters, out)
    return out


def empty_nf4(shape: tuple[int, int], *, blocksize: int, nested: bool, device: torch.device) -> FourBit:
    """An uninitialized NF4 weight with its codebooks. Raises RegistryError `invalid-request` for a blocksize that
    bitsandbytes does not support."""
    check_blocksize(blocksize, name="the output")
    elements = shape[0] * shape[1]
    blocks = -(-elements // blocksize)
    double = None
    if nested:
        double = Nested(
            absmax=torch.empty(-(-blocks // NESTED_BLOCKSIZE), device=device),
            values=torch.from_numpy(dynamic_map()).to(device, copy=True),
            offset=torch.zeros((), device=device),
        )
    return FourBit(
        packed=torch.empty(-(-elements // 2), dtype=torch.uint8, device=device),
        absmax=torch.empty(blocks, dtype=torch.uint8 if nested else torch.float32, device=device),
        values=torch.from_numpy(NF4.values).to(device, copy=True),
        shape=shape,
        blocksize=blocksize,
        nested=double,
    )
