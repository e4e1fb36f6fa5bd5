"""The merge into a quantized weight in plain torch: dequantize all of it, then merge."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.merge_low_rank import in_torch as merge_low_rank
from lora_kernels.ops.merge_low_rank.stats import MergeStats
from lora_kernels.ops.quantized import Quantized
from lora_kernels.ops.quantized.in_torch import dequantize


def merge(
    weight: Quantized,
    adapters: Sequence[LowRank],
    out: torch.Tensor,
    *,
    stats: bool,
    compute: torch.dtype = torch.float32,
) -> MergeStats | None:
    """Merge checked arguments into `out`. compute: dtype of all products and sums."""
    w = dequantize(weight, compute)
    return merge_low_rank.merge([(w, adapters, out)], stats=stats, compute=compute)[0]
