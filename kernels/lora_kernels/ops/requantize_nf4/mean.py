"""The mean of the absmax of all blocks, which double quantization subtracts."""

from __future__ import annotations

import torch


def mean(absmax: torch.Tensor) -> torch.Tensor:
    """float32 (), of float32 (n,): summed in float64, so that it is the mean rounded once but where that is within a
    few units of float64 of a tie. 0 of none."""
    return (absmax.sum(dtype=torch.float64) / max(absmax.numel(), 1)).float()
