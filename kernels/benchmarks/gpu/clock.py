"""Timing on the GPU's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import torch

# Cycles: about 2 ms, in which the host queues the launches of a call.
_AHEAD: Final = 4_000_000


def on_device(run: Callable[[], object]) -> float:
    """Seconds from the first launch of `run` to the end of the last. The GPU waits before the first, so that launches
    follow each other as in a full queue."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    torch.cuda._sleep(_AHEAD)  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def whole_call(run: Callable[[], object]) -> float:
    """Seconds from the call to the end of its launches, on an idle GPU, including the host's part."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began
