"""Where a run happens. On a GPU, the GPU's clock times it; a dry run interprets the kernels on small shapes, goes
through every stage and has no clock."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, NamedTuple

import torch

Shape = tuple[int, int]
# `_sleep` counts cycles; at this rate or a lower one it lasts at least as long as asked for.
_CYCLES_PER_SECOND: Final = 2.0e9
# The host must have queued a call before the GPU begins with it, or the host's time is measured too.
_AHEAD: Final = 1.5
_LONGEST_WAIT: Final = 0.1


class Warm(NamedTuple):
    """What a first call showed. host: seconds in which it was queued. waits: the host waited for the device, why; None
    if it did not."""

    host: float
    waits: str | None


class _Waited(Exception):
    pass


class Place(ABC):
    """A machine.

    Args:
        device: of all tensors.
        shapes: that are timed, the largest last.
        odd: a shape whose rows do not end with a tile, for the checks.
        items: matrices of a case at least.
        rotation: bytes that the items of a case take together at least, many times the L2 cache.
        rounds: medians are taken over this many.
    """

    device: torch.device
    dry: bool
    shapes: tuple[Shape, ...]
    odd: Shape
    items: int
    rotation: int
    rounds: int

    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def warm(self, run: Callable[[], object]) -> Warm:
        """Compile what a call needs, and call it once more."""

    @abstractmethod
    def time(self, run: Callable[[], object], warm: Warm) -> float | None:
        """Seconds of a call on the device, with the host's where it waits; None in a dry run. warm: of the same
        call."""

    @abstractmethod
    def finish(self) -> None:
        """Wait for all work, and free memory that is not in use."""


class Gpu(Place):
    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.dry = False
        self.shapes = ((4096, 4096), (8192, 28672))
        self.odd = (1000, 8200)
        self.items = 2
        self.rotation = 1 << 30
        self.rounds = 25

    def name(self) -> str:
        return torch.cuda.get_device_name()

    def warm(self, run: Callable[[], object]) -> Warm:
        run()
        torch.cuda.synchronize()
        began = time.perf_counter()
        waits = _waits(run, _no_waiting())
        return Warm(time.perf_counter() - began, waits)

    def time(self, run: Callable[[], object], warm: Warm) -> float | None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        wait = min(_AHEAD * warm.host + 1e-3, _LONGEST_WAIT)
        torch.cuda.synchronize()
        torch.cuda._sleep(int(wait * _CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def finish(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _waits(run: Callable[[], object], watched: AbstractContextManager[None]) -> str | None:
    try:
        with watched:
            run()
    except _Waited as error:
        return str(error)
    return None


@contextmanager
def _no_waiting() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchroniz" in str(error):
            raise _Waited(str(error)) from error
        raise
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Dry(Place):
    """Needs TRITON_INTERPRET=1 before Triton is imported."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.dry = True
        self.shapes = ((16, 128),)
        self.odd = (9, 72)
        self.items = 1
        self.rotation = 0
        self.rounds = 1

    def name(self) -> str:
        return "interpreter"

    def warm(self, run: Callable[[], object]) -> Warm:
        began = time.perf_counter()
        waits = _waits(run, _no_reading())
        return Warm(time.perf_counter() - began, waits)

    def time(self, run: Callable[[], object], warm: Warm) -> float | None:  # noqa: ARG002
        return None

    def finish(self) -> None:
        pass


@contextmanager
def _no_reading() -> Iterator[None]:
    """Refuse what would wait for a GPU: reading a tensor's elements into Python."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise _Waited("elements of a tensor were read by the host")

    readers = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__")
    kept = {name: getattr(torch.Tensor, name) for name in readers}
    for name in readers:
        setattr(torch.Tensor, name, refuse)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(torch.Tensor, name, method)
