"""The merge of a DoRA adapter in plain torch."""

from __future__ import annotations

import torch

from lora_kernels.ops.low_rank import LowRank, delta_sum


def merge(
    w: torch.Tensor,
    adapter: LowRank,
    magnitude: torch.Tensor,
    out: torch.Tensor,
    *,
    compute: torch.dtype = torch.float32,
) -> None:
    """Merge checked arguments into `out`. compute: dtype of all products and sums."""
    v = w.to(compute) + delta_sum(w, [adapter], compute)
    norm = torch.linalg.vector_norm(v, dim=1)
    out.copy_((magnitude.to(compute) / norm)[:, None] * v)
