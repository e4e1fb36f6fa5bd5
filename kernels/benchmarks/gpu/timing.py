"""A case beside a copy and plain torch: in turn, over items that no cache holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch

from benchmarks.gpu.cases import Case, size
from benchmarks.gpu.place import Place

# Plain torch takes several times as long.
_PEER_ROUNDS: Final = 5


def measure(place: Place, case: Case, ceilings: dict[str, float | None]) -> dict[str, Any]:
    """Times of one item, and shares: of the copy's bandwidth in the same rounds, and of the ceiling of the case's own
    mix. Times are None without a clock. `waits` says why a time includes the host's."""
    items = [case.prepare()]
    per_item = case.moved(items[0])
    items += [case.prepare() for _ in range(max(place.items, place.rotation // per_item) - 1)]
    source = torch.randint(0, 100, (max(place.rotation, 4096) // 4,), dtype=torch.int32, device=place.device)
    target = torch.empty_like(source)

    def run() -> object:
        return case.run(items)

    def copy() -> object:
        return target.copy_(source)

    warm, copy_warm = place.warm(run), place.warm(copy)
    copies, times = [], []
    for _ in range(place.rounds):
        copies.append(place.time(copy, copy_warm))
        times.append(place.time(run, warm))
    each = [None if taken is None else taken / len(items) for taken in times]
    fields: dict[str, Any] = {"bytes": per_item, "items": len(items)}
    fields |= {"host_milliseconds": warm.host / len(items) * 1e3, "waits": warm.waits}
    fields |= _figures(case, per_item, size(source), copies, each, ceilings)
    if case.peer is not None:
        fields["times_torch"] = _peer(place, partial(case.peer, items), times)
    return fields


def _figures(
    case: Case,
    moved: int,
    copied: int,
    copies: list[float | None],
    times: list[float | None],
    ceilings: dict[str, float | None],
) -> dict[str, Any]:
    pairs = [(taken, copy) for taken, copy in zip(times, copies, strict=True) if taken is not None and copy is not None]
    if not pairs:
        return {"milliseconds": None}
    shares = [moved / taken / (2 * copied / copy) for taken, copy in pairs]
    median = statistics.median(taken for taken, _ in pairs)
    ceiling = ceilings.get(case.mix)
    return {
        "milliseconds": median * 1e3,
        "best_milliseconds": min(taken for taken, _ in pairs) * 1e3,
        "share_of_copy": statistics.median(shares),
        "lowest_share": min(shares),
        "mix": case.mix,
        "share_of_mix": moved / median / ceiling if ceiling else None,
    }


def _peer(place: Place, peer: Callable[[], object], times: list[float | None]) -> float | None:
    warm = place.warm(peer)
    taken = [place.time(peer, warm) for _ in range(min(place.rounds, _PEER_ROUNDS))]
    ours, theirs = ([one for one in values if one is not None] for values in (times, taken))
    return statistics.median(theirs) / statistics.median(ours) if ours and theirs else None
