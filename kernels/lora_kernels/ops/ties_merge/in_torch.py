"""TIES in plain torch, on dense deltas."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.low_rank import LowRank, delta_sum
from lora_kernels.ops.sparse import MajoritySign
from lora_kernels.ops.sparse.in_torch import combine


def merge(
    w: torch.Tensor,
    adapters: Sequence[LowRank],
    out: torch.Tensor,
    *,
    weights: Sequence[float],
    density: float,
    method: MajoritySign,
    compute: torch.dtype = torch.float32,
) -> None:
    """Merge checked arguments into `out`. compute: dtype of all products and sums."""
    before = w.to(compute)
    deltas = [trim(delta_sum(w, [adapter], compute), density) for adapter in adapters]
    out.copy_(before + combine(before, deltas, weights, method))


def trim(delta: torch.Tensor, density: float) -> torch.Tensor:
    """delta with 0 for elements below its int(density * elements)-th largest magnitude; NaN counts as the largest."""
    keep = int(density * delta.numel())
    if keep == delta.numel():
        return delta
    if keep == 0:
        return torch.zeros_like(delta)
    # The bits of magnitudes, as integers, have the same order, with NaN above infinity.
    bits = delta.abs().view(torch.int32 if delta.dtype == torch.float32 else torch.int64)
    limit = bits.flatten().kthvalue(delta.numel() - keep + 1).values
    return torch.where(bits >= limit, delta, 0)
