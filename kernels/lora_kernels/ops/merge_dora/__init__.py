"""W_new = round_once(m / norm_row(V) * V), V = float32(W) + scale * B A: a DoRA adapter merged in two passes over W.

The norm is that of a row of V, over the input features, for the given W (Liu et al., "DoRA: Weight-Decomposed Low-Rank
Adaptation", 2402.09353, and PEFT). Products and sums are float32; the sum over tiles of a row, the root and the
quotient are float64, as there are few per row. Both passes compute V again instead of storing it.
"""

from __future__ import annotations

import torch

from lora_kernels.ops.dispatch import Backend, choose
from lora_kernels.ops.low_rank import LowRank, check_adapters, check_output, check_vector, check_weight

__all__ = ["merge_dora"]


def merge_dora(
    w: torch.Tensor,
    adapter: LowRank,
    magnitude: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """Merge one adapter.

    A row of V that is zero becomes NaN, as in PEFT. Raises RegistryError `invalid-request` for shapes, dtypes and
    devices that do not match, `unsupported` if Triton is requested and cannot run.

    Args:
        w: (o, i), bf16, fp16 or fp32, any strides; row-major is fastest.
        magnitude: m (o,), bf16, fp16 or fp32.
        out: W itself to merge in place; None to allocate it in the layout of W.
        dtype: of the output; None for that of `out`, or of W.
        backend: None to choose it by W's device.
    """
    check_weight(w)
    check_output(w, out, dtype)
    check_adapters(w, [adapter])
    check_vector(magnitude, w.shape[0], w.device, name="The magnitude of W")
    out = torch.empty_like(w, dtype=dtype) if out is None else out
    if choose(w.device, backend) == "triton":
        from lora_kernels.ops.merge_dora import kernel

        kernel.merge(w, adapter, magnitude, out)
    else:
        from lora_kernels.ops.merge_dora import in_torch as reference

        reference.merge(w, adapter, magnitude, out)
    return out
