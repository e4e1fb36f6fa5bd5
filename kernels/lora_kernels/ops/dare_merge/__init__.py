"""W_new = round_once(float32(W) + DARE of the deltas): elements dropped at random, the others enlarged, then summed or
elected, without a delta in memory.

With D_n = scale_n * B_n A_n: each element of D_n stays with the probability `density`, divided by it; then the weighted
sum (`dare_linear`) or the vote of `sparse` (`dare_ties`), as `dare_linear_svd` and `dare_ties_svd` of PEFT 0.21 do on
dense deltas, without their last step back to a low rank (Yu et al., 2311.03099). Element e of W (o, i), row * i +
column, stays in adapter n where `numeric.philox.keep_mask(keys[n], e, 1, density)` says so: the same on every device
and in any order. The division is part of the weight, float32(weight / density): one rounding less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.dispatch import Backend, choose
from lora_kernels.ops.low_rank import LowRank, check_adapters, check_output, check_weight
from lora_kernels.ops.sparse import MajoritySign, check_recipe, refused

__all__ = ["dare_merge"]


def dare_merge(
    w: torch.Tensor,
    adapters: Sequence[LowRank],
    *,
    weights: Sequence[float],
    density: float,
    keys: Sequence[int],
    majority_sign_method: MajoritySign | None = None,
    out: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """w (o, i): bf16, fp16 or fp32, any strides. weights: of the adapters, any sign, apart from their scale. density:
    in (0, 1]. keys: 64-bit, one per adapter, of `numeric.philox.stream_key(seed, name)`; equal keys drop equal
    elements. majority_sign_method: None for `dare_linear`, else of `dare_ties`. out: W itself to merge in place; None
    to allocate it, laid out as W is. dtype: None for that of `out`, or of W. backend: None to go by W's device.

    Raises RegistryError `invalid-request` for what does not fit, `unsupported` where Triton was asked for and cannot
    run.
    """
    check_weight(w)
    check_output(w, out, dtype)
    check_adapters(w, adapters)
    check_recipe(adapters, weights, density, majority_sign_method)
    if len(keys) != len(adapters) or not all(0 <= key < 2**64 for key in keys):
        raise refused(f"There are {len(keys)} keys for {len(adapters)} adapters; expected as many, of 64 bits.")
    out = torch.empty_like(w, dtype=dtype) if out is None else out
    if choose(w.device, backend) == "triton":
        from lora_kernels.ops.dare_merge import kernel

        kernel.merge(w, adapters, out, weights=weights, density=density, keys=keys, method=majority_sign_method)
    else:
        from lora_kernels.ops.dare_merge import in_torch as reference

        reference.merge(w, adapters, out, weights=weights, density=density, keys=keys, method=majority_sign_method)
    return out
