"""W_new = round_once(float32(W) + TIES of the deltas): trimmed, elected and averaged without a delta in memory.

With D_n = scale_n * B_n A_n: each D_n keeps the elements whose magnitude is at least its k-th largest, k =
int(density * elements), the others are 0; then the vote of `sparse`. This is what `ties_svd` of PEFT 0.21 does on dense
deltas, without its last step back to a low rank (Yadav et al., 2306.01708). The k-th largest is found exactly. All
elements of just that magnitude are kept, where PEFT keeps some of them, whichever its top-k meets first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.dispatch import Backend, choose
from lora_kernels.ops.low_rank import LowRank, check_adapters, check_output, check_weight
from lora_kernels.ops.sparse import MajoritySign, check_recipe

__all__ = ["ties_merge"]


def ties_merge(
    w: torch.Tensor,
    adapters: Sequence[LowRank],
    *,
    weights: Sequence[float],
    density: float,
    majority_sign_method: MajoritySign = "total",
    out: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """w (o, i): bf16, fp16 or fp32, any strides. weights: of the adapters, any sign, apart from their scale. density:
    in (0, 1], 1 to trim nothing. out: W itself to merge in place; None to allocate it, laid out as W is. dtype: None
    for that of `out`, or of W. backend: None to go by W's device.

    Raises RegistryError `invalid-request` for what does not fit, `unsupported` where Triton was asked for and cannot
    run.
    """
    check_weight(w)
    check_output(w, out, dtype)
    check_adapters(w, adapters)
    check_recipe(adapters, weights, density, majority_sign_method)
    out = torch.empty_like(w, dtype=dtype) if out is None else out
    if choose(w.device, backend) == "triton":
        from lora_kernels.ops.ties_merge import kernel

        kernel.merge(w, adapters, out, weights=weights, density=density, method=majority_sign_method)
    else:
        from lora_kernels.ops.ties_merge import in_torch as reference

        reference.merge(w, adapters, out, weights=weights, density=density, method=majority_sign_method)
    return out
