"""W = round_once(what a quantized weight stands for): NF4, FP4 and int8 of bitsandbytes to bf16, fp16 or float32.

float32 products, as in bitsandbytes 0.50.2, then one rounding: the bits that it gives on a CPU, but for its own fault
with AVX-512, where a block that straddles rows takes the next row's absmax too early.
"""

from __future__ import annotations

import torch

from lora_kernels.ops.dispatch import Backend, choose
from lora_kernels.ops.low_rank import check_output
from lora_kernels.ops.quantized import FourBit, Int8Rows, Nested, Quantized, check_quantized

__all__ = ["FourBit", "Int8Rows", "Nested", "dequant_blockwise"]


def dequant_blockwise(
    weight: Quantized,
    *,
    out: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """out: (o, i), bf16, fp16 or fp32, any strides; None to allocate it row by row. dtype: None for that of `out`, or
    bf16. backend: None to go by the weight's device.

    Raises RegistryError `invalid-request` for parts, shapes, types and devices that do not fit, `unsupported` where
    Triton was asked for and cannot run.
    """
    check_quantized(weight)
    check_output(weight, out, dtype)
    if out is None:
        out = torch.empty(weight.shape, dtype=dtype or torch.bfloat16, device=weight.device)
    if choose(weight.device, backend) == "triton":
        from lora_kernels.ops.dequant_blockwise import kernel

        kernel.dequantize(weight, out)
    else:
        from lora_kernels.ops.quantized import in_torch as reference

        out.copy_(reference.dequantize(weight))
    return out
