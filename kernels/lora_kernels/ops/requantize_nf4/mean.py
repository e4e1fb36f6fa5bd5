"""The mean of the absmax of all blocks, which double quantization subtracts."""

from __future__ import annotations

import torch


def mean(absmax: torch.Tensor) -> torch.Tensor:
    """The mean, float32 (), of float32 (n,); 0 if empty. Summed in float64, so that it is the mean rounded once unless
    that is within a few float64 ulps of a tie."""
    return (absmax.sum(dtype=torch.float64) / max(absmax.numel(), 1)).float()
