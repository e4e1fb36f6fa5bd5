"""W_new = round_once(float32(W) + TIES of the deltas): trimmed, elected and averaged without a delta in memory.

With D_n = scale_n * B_n A_n: each D_n keeps the elements whose magnitude is at least its k-th largest, k =
int(density * elements), the others are 0; then follows the vote of `sparse`. This is `ties_svd` of PEFT 0.21 on dense
deltas, but without the final low-rank approximation (Yadav et al., 2306.01708). The k-th largest is exact. All elements
of exactly that magnitude are kept, whereas PEFT keeps arbitrary ones of them.
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
    """Merge adapters by TIES.

    Raises RegistryError `invalid-request` for invalid arguments, `unsupported` if Triton is requested and cannot run.

    Args:
        w: (o, i), bf16, fp16 or fp32, any strides.
        weights: of the adapters, any sign, in addition to their scale.
        density: in (0, 1], 1 to trim nothing.
        out: W itself to merge in place; None to allocate it in the layout of W.
        dtype: of the output; None for that of `out`, or of W.
        backend: None to choose it by W's device.
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
