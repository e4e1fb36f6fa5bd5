"""The statistics in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.tensor_stats.summary import Summary


def summaries(tensors: Sequence[torch.Tensor]) -> list[Summary]:
    return [_summary(tensor) for tensor in tensors]


def _summary(tensor: torch.Tensor) -> Summary:
    finite = tensor.isfinite()
    values = torch.where(finite, tensor, 0).double()
    return Summary(
        sum_squares=float(values.square().sum()),
        max_abs=float(values.abs().max()) if values.numel() else 0.0,
        non_finite=int((~finite).sum()),
    )
