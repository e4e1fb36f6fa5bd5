"""W_new = round_once(float32(W) + DARE of the deltas): elements are dropped at random, the others rescaled, then summed
or elected, without a delta in memory.

With D_n = scale_n * B_n A_n: each element of D_n is kept with probability `density` and divided by it; then follows the
weighted sum (`dare_linear`) or the vote of `sparse` (`dare_ties`), as in `dare_linear_svd` and `dare_ties_svd` of PEFT
0.21 on dense deltas, but without the final low-rank approximation (Yu et al., 2311.03099). Element e = row * i + column
of W (o, i) is kept in adapter n if `numeric.philox.keep_mask(keys[n], e, 1, density)`: the same on every device and in
any order. The division is part of the weight, float32(weight / density), which saves a rounding.
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
    """Merge adapters by DARE.

    Raises RegistryError `invalid-request` for invalid arguments, `unsupported` if Triton is requested and cannot run.

    Args:
        w: (o, i), bf16, fp16 or fp32, any strides.
        weights: of the adapters, any sign, in addition to their scale.
        density: in (0, 1].
        keys: 64-bit, one per adapter, from `numeric.philox.stream_key(seed, name)`; equal keys drop equal elements.
        majority_sign_method: of `dare_ties`; None for `dare_linear`.
        out: W itself to merge in place; None to allocate it in the layout of W.
        dtype: of the output; None for that of `out`, or of W.
        backend: None to choose it by W's device.
    """
    check_weight(w)
    check_output(w, out, dtype)
    check_adapters(w, adapters)
    check_recipe(adapters, weights, density, majority_sign_method)
    if len(keys) != len(adapters) or not all(0 <= key < 2**64 for key in keys):
        raise refused(f"There are {len(keys)} keys for {len(adapters)} adapters; expected one 64-bit key each.")
    out = torch.empty_like(w, dtype=dtype) if out is None else out
    if choose(w.device, backend) == "triton":
        from lora_kernels.ops.dare_merge import kernel

        kernel.merge(w, adapters, out, weights=weights, density=density, keys=keys, method=majority_sign_method)
    else:
        from lora_kernels.ops.dare_merge import in_torch as reference

        reference.merge(w, adapters, out, weights=weights, density=density, keys=keys, method=majority_sign_method)
    return out
