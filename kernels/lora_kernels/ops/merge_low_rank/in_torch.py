"""The reference implementation of the merge in torch, which also runs without a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.numeric.sums import UpdateSums
from lora_kernels.ops.low_rank import LowRank, delta_sum
from lora_kernels.ops.merge_low_rank.stats import MergeStats

Item = tuple[torch.Tensor, Sequence[LowRank], torch.Tensor]


def merge(items: Sequence[Item], *, stats: bool, compute: torch.dtype = torch.float32) -> list[MergeStats] | list[None]:
    """Merge checked items (W, adapters, output) into their outputs. compute: dtype of products and sums."""
    found = [_merge(w, adapters, out, stats=stats, compute=compute) for w, adapters, out in items]
    return [one for one in found if one is not None] if stats else [None] * len(items)


def _merge(
    w: torch.Tensor, adapters: Sequence[LowRank], out: torch.Tensor, *, stats: bool, compute: torch.dtype
) -> MergeStats | None:
    before = w.to(compute)
    delta = delta_sum(w, adapters, compute)
    result = (before + delta).to(out.dtype)
    found = _stats(before, delta, result) if stats else None
    out.copy_(result)  # last: in place, `before` may be the same memory
    return found


def _stats(before: torch.Tensor, delta: torch.Tensor, result: torch.Tensor) -> MergeStats:
    delta = delta.double()
    realised = result.double() - before.double()
    return MergeStats(
        sums=UpdateSums(
            delta_delta=float((delta * delta).sum()),
            realised_delta=float((realised * delta).sum()),
            realised_realised=float((realised * realised).sum()),
        ),
        max_delta=float(delta.abs().nan_to_num(nan=torch.inf).max()) if delta.numel() else 0.0,
        non_finite=int((~result.isfinite()).sum()),
    )
