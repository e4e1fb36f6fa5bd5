"""Sums and votes over sparse deltas in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.sparse import MajoritySign


def weighted(delta: torch.Tensor, weight: float) -> torch.Tensor:
    """delta * float32(weight), in delta's dtype."""
    return delta * torch.tensor(weight, dtype=torch.float32, device=delta.device).to(delta.dtype)


def combine(
    like: torch.Tensor, deltas: Sequence[torch.Tensor], weights: Sequence[float], method: MajoritySign | None
) -> torch.Tensor:
    """The weighted sum of the deltas, in order, or the disjoint mean. like: has the result's shape and dtype. deltas:
    with 0 for dropped elements. method: None for the sum."""
    total, elected = torch.zeros_like(like), torch.zeros_like(like)
    if method is None:
        for delta, weight in zip(deltas, weights, strict=True):
            total += weighted(delta, weight)
        return total
    for delta in deltas:
        # torch's sign of NaN is 0, which would hide the NaN.
        elected += delta if method == "total" else torch.where(delta.isnan(), delta, delta.sign())
    up = elected >= 0
    count = torch.zeros_like(like)
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = torch.where(up, delta > 0, delta < 0)
        total += torch.where(agrees, weighted(delta, weight), 0)
        count += agrees
    return torch.where(elected.isnan(), elected, total / count.clamp(min=1))
