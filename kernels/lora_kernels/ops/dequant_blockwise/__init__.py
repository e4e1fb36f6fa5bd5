"""W = round_once(dequantized weight): NF4, FP4 and int8 of bitsandbytes to bf16, fp16 or float32.

float32 products, as in bitsandbytes 0.50.2, then one rounding: bitwise equal to its results on a CPU, except for its
bug with AVX-512, which uses the next row's absmax too early in blocks that straddle rows.
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
    """Dequantize a weight.

    out: (o, i), bf16, fp16 or fp32, any strides; None to allocate it in row-major order. dtype: None for that of `out`,
    or bf16. backend: None to choose it by the weight's device. Raises RegistryError `invalid-request` for parts,
    shapes, dtypes and devices that do not match, `unsupported` if Triton is requested and cannot run.
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
