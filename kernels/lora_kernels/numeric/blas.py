"""One BLAS thread while a merge runs.

A merge splits its work into blocks of fixed size. BLAS splits a product by its number of threads, which changes the
last bits (seen with OpenBLAS 0.3.31 at rank 64), and its threads spin against the other workers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import numpy as np  # noqa: F401 its BLAS must be loaded before the look-up
from threadpoolctl import LibController, ThreadpoolController

_T = TypeVar("_T")


class _Hold:
    """The number of merges in this process that hold BLAS at one thread, and the thread counts to restore."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.previous: list[int] = []


_hold = _Hold()


@cache
def _libraries() -> list[LibController]:
    """The BLAS libraries of this process, cached: a look-up takes as long as thousands of blocks."""
    libraries: list[LibController] = ThreadpoolController().select(user_api="blas").lib_controllers
    return libraries


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS at one thread; the last holder restores the previous count."""
    libraries = _libraries()
    with _hold.lock:
        if _hold.holders == 0:
            _hold.previous = [library.get_num_threads() for library in libraries]
            for library in libraries:
                library.set_num_threads(1)
        _hold.holders += 1
    try:
        yield
    finally:
        with _hold.lock:
            _hold.holders -= 1
            if _hold.holders == 0:
                for library, count in zip(libraries, _hold.previous, strict=True):
                    library.set_num_threads(count)


def on_one_thread(results: Iterator[_T]) -> Iterator[_T]:
    """Yield the same results, each computed under `one_thread`.

    BLAS is released before each yield: an abandoned iterator would hold it until garbage collection.
    """
    while True:
        with one_thread():
            try:
                result = next(results)
            except StopIteration:
                return
        yield result
