"""One BLAS thread while a merge runs.

A merge splits its work itself, into blocks of fixed size. Threads inside BLAS split a product by their number, which
changes its last bits (seen with OpenBLAS 0.3.31 at rank 64); they would also spin against the other workers.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")

_PREFIXES = ("scipy_", "")
_SUFFIXES = ("64_", "")


class _Hold:
    """How many merges of this process hold BLAS at one thread, and the count to go back to."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.previous = 1


_hold = _Hold()


@cache
def _controls() -> tuple[Callable[[int], Any], Callable[[], int]] | None:
    """Setter and getter of the thread count of numpy's own OpenBLAS; None where numpy was built with another BLAS."""
    package = Path(np.__file__).parent
    candidates = sorted([*package.parent.glob("numpy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")])
    for path in candidates:
        library = ctypes.CDLL(str(path))
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                setter = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
                getter = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
                if setter is not None and getter is not None:
                    return setter, getter
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold numpy's BLAS at one thread; the count from before returns when the last holder leaves.

    Without effect where numpy does not carry its own OpenBLAS: there `OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS` or
    `BLIS_NUM_THREADS` in the environment of the process decides.
    """
    controls = _controls()
    if controls is None:
        yield
        return
    set_threads, get_threads = controls
    with _hold.lock:
        if _hold.holders == 0:
            _hold.previous = get_threads()
            set_threads(1)
        _hold.holders += 1
    try:
        yield
    finally:
        with _hold.lock:
            _hold.holders -= 1
            if _hold.holders == 0:
                set_threads(_hold.previous)


def on_one_thread(results: Iterator[_T]) -> Iterator[_T]:
    """The same results, each computed under `one_thread`.

    The hold never lasts across a yield: an iterator left half read would keep it until it is collected.
    """
    while True:
        with one_thread():
            try:
                result = next(results)
            except StopIteration:
                return
        yield result
