"""NF4 of W + sum_i scale_i * B_i A_i: merged and quantized, W dense or itself quantized.

The codes are those of bitsandbytes 0.50.2, bit for bit: the merged float32 times the reciprocal of its block's absmax,
midpoints to the smaller. Double quantization is that of `docs/decisions/0007-nf4-that-we-write.md`: the mean in
float64, rounded once; the nearest 8-bit codes. Where W was on the NF4 grid already most of a small update is lost
(`docs/quantized-bases.md`).
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
from lora_kernels.quantized.codes import NF4, dynamic_map
from lora_kernels.quantized.layout import NESTED_BLOCKSIZE

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
    """weight (o, i): bf16, fp16 or fp32 with any strides, or quantized. nested: double quantization. out: of
    `empty_nf4`, in memory of its own, which then says blocksize and nested; None to allocate it. backend: None to go by
    the weight's device.

    The merged weights must be finite: an element that is not gives its block an absmax that is not. Raises
    RegistryError `invalid-request` for what does not fit, `unsupported` where Triton was asked for and cannot run.
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
        raise refused(f"The absmax of the output are in blocks of {out.nested.blocksize}; expected {NESTED_BLOCKSIZE}.")
    if choose(weight.device, backend) == "triton":
        from lora_kernels.ops.requantize_nf4 import kernel

        kernel.requantize(weight, adapters, out)
    else:
        from lora_kernels.ops.requantize_nf4 import in_torch as reference

        reference.requantize(weight, adapters, out)
    return out


def empty_nf4(shape: tuple[int, int], *, blocksize: int, nested: bool, device: torch.device) -> FourBit:
    """Memory for an NF4 weight, its tables filled in. Raises RegistryError `invalid-request` for another size of block
    than bitsandbytes has."""
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
