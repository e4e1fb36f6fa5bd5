"""`MergeStats` of a merge kernel: sums over each tile, which are then added in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import triton
import triton.language as tl

from lora_kernels.numeric.sums import UpdateSums
from lora_kernels.ops.merge_low_rank.stats import MergeStats
from lora_kernels.ops.rounding import round_to
from lora_kernels.ops.totals import totals

PARTIALS: Final = 5
MAX_DELTA: Final = 3


@triton.jit
def store_partials(
    partials: tl.tensor,
    i_program: tl.tensor,
    b_w: tl.tensor,
    b_delta: tl.tensor,
    b_out: tl.tensor,
    m_tile: tl.tensor,
    OUTPUT: tl.constexpr,
) -> None:
    """partials: float32 (programs, 5). b_out: W + dW before rounding to OUTPUT; all blocks are float32."""
    b_rounded = round_to(b_out, OUTPUT)
    # Outside the matrix all is 0, or NaN from 0 * infinity, but then the sums inside are not finite either.
    b_realised = b_rounded - b_w
    b_size = tl.where(b_delta == b_delta, tl.abs(b_delta), float("inf"))
    b_lost = m_tile & ~(tl.abs(b_rounded) < float("inf"))
    p_partials = partials + i_program * 5
    tl.store(p_partials, tl.sum(b_delta * b_delta))
    tl.store(p_partials + 1, tl.sum(b_realised * b_delta))
    tl.store(p_partials + 2, tl.sum(b_realised * b_realised))
    tl.store(p_partials + 3, tl.max(b_size))
    tl.store(p_partials + 4, tl.sum(b_lost.to(tl.float32)))


def sums(partials: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Sums over each job's tiles, float64 (jobs, 5), on the device. counts: number of tiles of each job."""
    return totals(partials, counts, maximum=MAX_DELTA)


def read(found: torch.Tensor) -> list[MergeStats]:
    """Wait for the device and read the result of `sums`."""
    return [
        MergeStats(sums=UpdateSums(*row[:3]), max_delta=row[MAX_DELTA], non_finite=int(row[4]))
        for row in found.tolist()
    ]
