"""Process attributes of Linux that Python has no function for."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

_lock: Final = threading.Lock()
_subreaping: list[int] = []


def die_with_parent(parent: int, *, sent: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `sent` to this process when the thread that started it ends; exit if it already has.

    parent: id of the process that started it. Linux only.
    """
    _prctl(_PR_SET_PDEATHSIG, int(sent), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def child_subreaper() -> Iterator[None]:
    """Become the parent of every descendant whose own parent ends during the block.

    Only during it: otherwise a worker would have to reap whatever its children leave behind.
    """
    with _lock:
        if not _subreaping:
            _prctl(_PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")
        _subreaping.append(1)
    try:
        yield
    finally:
        with _lock:
            _subreaping.pop()
            if not _subreaping:
                _prctl(_PR_SET_CHILD_SUBREAPER, 0, "PR_SET_CHILD_SUBREAPER")


def _prctl(option: int, value: int, name: str) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({name})")
