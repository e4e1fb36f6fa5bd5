"""W_new = round_once(dequantized W + sum_i scale_i * B_i A_i): dequantizing and merging in one read of the codes and
one write of W.

The dequantized W is float32, not rounded to the model's compute dtype; otherwise as `merge_low_rank`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.dispatch import Backend, choose
from lora_kernels.ops.low_rank import LowRank, check_adapters, check_output
from lora_kernels.ops.merge_low_rank import Merged
from lora_kernels.ops.quantized import Quantized, check_quantized

__all__ = ["merge_quantized"]


def merge_quantized(
    weight: Quantized,
    adapters: Sequence[LowRank],
    *,
    out: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    stats: bool = False,
    backend: Backend | None = None,
) -> Merged:
    """Merge any number of adapters, of any ranks, into one quantized matrix (o, i).

    Raises RegistryError `invalid-request` for parts, shapes, dtypes and devices that do not match, `unsupported` if
    Triton is requested and cannot run.

    Args:
        out: bf16, fp16 or fp32, any strides; None to allocate it in row-major order.
        dtype: of the output; None for that of `out`, or bf16.
        stats: return statistics of the update and its rounding.
        backend: None to choose it by the weight's device.
    """
    check_quantized(weight)
    check_output(weight, out, dtype)
    check_adapters(weight, adapters)
    if out is None:
        out = torch.empty(weight.shape, dtype=dtype or torch.bfloat16, device=weight.device)
    if choose(weight.device, backend) == "triton":
        from lora_kernels.ops.merge_quantized import kernel

        return Merged(out, kernel.merge(weight, adapters, out, stats=stats))
    from lora_kernels.ops.merge_quantized import in_torch as reference

    return Merged(out, reference.merge(weight, adapters, out, stats=stats))
