"""`MergeStats` of a merge kernel: sums over each program's share, which are then added in order.

A kernel may leave out the number of elements that are not finite. The sum of squares of what was realised tells whether
there is one: only then are the results counted, in a launch of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
import triton
import triton.language as tl

from lora_kernels.numeric.sums import UpdateSums
from lora_kernels.ops.merge_low_rank.stats import MergeStats
from lora_kernels.ops.rounding import round_to
from lora_kernels.ops.tensor_stats import kernel as tensor_stats
from lora_kernels.ops.totals import totals

PARTIALS: Final = 5
SUMS: Final = 4
REALISED: Final = 2
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


def sums_without_count(partials: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The same of float32 (programs, 4), with NaN for the number of elements that are not finite."""
    found = totals(partials, counts, maximum=MAX_DELTA)
    return torch.nn.functional.pad(found, (0, 1), value=math.nan)


def read(found: torch.Tensor, outs: Sequence[torch.Tensor] = ()) -> list[MergeStats]:
    """Wait for the device and read the result of `sums` or `sums_without_count`. outs: the results of the jobs, needed
    for the latter."""
    rows: list[list[float]] = found.tolist()
    unknown = [index for index, row in enumerate(rows) if math.isnan(row[-1])]
    lost = dict.fromkeys(unknown, 0.0)
    again = [index for index in unknown if not math.isfinite(rows[index][REALISED])]
    if again:
        counted: list[list[float]] = tensor_stats.sums([outs[index] for index in again]).tolist()
        lost |= {index: row[tensor_stats.NON_FINITE] for index, row in zip(again, counted, strict=True)}
    return [
        MergeStats(sums=UpdateSums(*row[:3]), max_delta=row[MAX_DELTA], non_finite=int(lost.get(index, row[-1])))
        for index, row in enumerate(rows)
    ]
