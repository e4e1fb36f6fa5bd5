"""W_new = round_once(m / norm_row(V) * V), V = float32(W) + scale * B A: a DoRA adapter merged in two passes over W.

The norm is that of a row of V, over the input features, of the W that is passed (Liu et al., "DoRA: Weight-Decomposed
Low-Rank Adaptation", 2402.09353, and PEFT). Products and sums in float32; the squares of a row, the root and the
quotient with m in float64, as they are a few per row. Neither pass keeps V: both multiply it anew.
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

    w (o, i): bf16, fp16 or fp32, any strides; best row by row. magnitude m (o,): bf16, fp16 or fp32. out: W itself to
    merge in place; None to allocate it, laid out as W is. dtype: None for that of `out`, or of W. backend: None to go
    by W's device.

    A row of V that is zero has no direction: it becomes NaN, as in PEFT. Raises RegistryError `invalid-request` for
    shapes, types and devices that do not fit, `unsupported` where Triton was asked for and cannot run.
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
