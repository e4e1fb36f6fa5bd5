"""The k-th largest magnitude of each delta, exactly, without a delta in memory.

A sample of elements gives a bracket of magnitudes that holds the k-th but for one chance in a thousand million. One
pass over all elements counts those above the bracket and, in bins, those within; the k-th follows from the counts. If
it lies outside after all, a pass with bins over all magnitudes finds its bin, and another its place in the bin. Passes
over deltas that are done end at once, so that the host never waits for a count. All counts are integers: their order
does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from lora_kernels.ops.low_rank import LowRank

BINS: Final = 2**18
# With bins of 2^13 patterns, BINS cover all magnitudes: 31 bits.
COARSE: Final = 13
MAX_PASSES: Final = 3
KEEP_ALL: Final = 0
KEEP_NONE: Final = 2**31
# The k-th lies this many standard deviations of its sampled rank from the edges of the bracket.
_SIGMAS: Final = 6.0
_MOST_SAMPLES: Final = 2**20
# Elements of the gathered factors.
_MOST_GATHERED: Final = 2**25
# A quarter of a small matrix; its deltas are cheap to count.
_SHARE: Final = 4
# Fractions of the sequence of Roberts, "The unreasonable effectiveness of quasirandom sequences": powers of 1/1.3247.
_STEPS: Final = (3242174889, 2447445414)


@dataclass(frozen=True, slots=True)
class Search:
    """Where the k-th magnitude of each delta is sought. All are int64 (adapters,), on the device.

    Args:
        low: bits of the smallest magnitude in the first bin; the result where `done`.
        shift: a bin has 2^shift patterns.
        done: 1 where low is the k-th magnitude.
    """

    low: torch.Tensor
    shift: torch.Tensor
    done: torch.Tensor


def start(shape: Sequence[int], adapters: Sequence[LowRank], keep: int) -> Search:
    """The bracket from a sample. keep: k, at least 1 and less than the number of elements."""
    rows, columns = shape
    size = rows * columns
    rank = max(adapter.rank for adapter in adapters)
    samples = max(1, min(_MOST_SAMPLES, _MOST_GATHERED // rank, size // _SHARE))
    device = adapters[0].a.device
    steps = torch.arange(samples, dtype=torch.int64, device=device)
    o_rows, o_columns = (
        (((steps * step) & 0xFFFFFFFF) * length) >> 32 for step, length in zip(_STEPS, (rows, columns), strict=True)
    )
    bits = torch.stack([_magnitudes(adapter, o_rows, o_columns) for adapter in adapters]).sort(descending=True).values
    share = keep / size
    margin = _SIGMAS * math.sqrt(share * (1 - share) * samples) + 2
    first, last = math.floor(share * samples - margin), math.ceil(share * samples + margin)
    high = bits[:, first].long() if first >= 0 else torch.full((len(adapters),), 2**31 - 1, device=device)
    low = bits[:, last].long() if last < samples else torch.zeros_like(high)
    widths = (high - low)[:, None] >> torch.arange(COARSE, device=device)
    return Search(low=low, shift=(widths >= BINS).sum(1), done=torch.zeros_like(low))


def _magnitudes(adapter: LowRank, o_rows: torch.Tensor, o_columns: torch.Tensor) -> torch.Tensor:
    """About the bits of some elements' magnitudes, int32."""
    products = adapter.b.T[:, o_rows].float() * adapter.a[:, o_columns].float()
    return products.sum(0).mul_(adapter.scale).view(torch.int32) & 0x7FFFFFFF


def advance(search: Search, keep: int, reached: torch.Tensor, counts: torch.Tensor) -> Search:
    """The search after a pass. reached: int64 (adapters,), elements in the bins or above them. counts: (adapters,
    BINS), elements in each bin."""
    before = counts.cumsum(1, dtype=torch.int64) - counts
    at_least = reached[:, None] - before
    inside = (reached >= keep) & (at_least[:, -1] - counts[:, -1] < keep)
    found = search.low + (((at_least >= keep).sum(1) - 1) << search.shift)
    open_ = search.done == 0
    return Search(
        low=torch.where(open_, torch.where(inside, found, 0), search.low),
        shift=torch.where(inside, 0, COARSE),
        done=search.done | (inside & (search.shift == 0)),
    )
