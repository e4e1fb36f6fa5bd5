"""DARE in plain torch, on dense deltas."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.numeric.philox import keep_mask
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
    keys: Sequence[int],
    method: MajoritySign | None,
    compute: torch.dtype = torch.float32,
) -> None:
    """Merge checked arguments into `out`. compute: dtype of all products and sums."""
    before = w.to(compute)
    deltas = [
        torch.where(_mask(w, key, density), delta_sum(w, [adapter], compute), 0)
        for adapter, key in zip(adapters, keys, strict=True)
    ]
    out.copy_(before + combine(before, deltas, [weight / density for weight in weights], method))


def _mask(w: torch.Tensor, key: int, density: float) -> torch.Tensor:
    return torch.from_numpy(keep_mask(key, 0, w.numel(), density)).reshape(w.shape).to(w.device)
