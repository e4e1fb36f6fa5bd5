"""Queues between the threads of an execution. When one thread fails, or the consumer leaves, all of them end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The execution has ended: the thread that waited is to return."""


class Threads:
    """The threads of an execution.

    error: the first that a thread raised; None if none did.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.stopped = False
        self.error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def start(self, runs: Sequence[Callable[[], None]]) -> None:
        for run in runs:
            self._threads.append(threading.Thread(target=self._guarded, args=(run,), name=run.__name__, daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """End all threads, and wait for them."""
        self._end(None)
        for thread in self._threads:
            thread.join()

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 raised again by the consumer
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        with self.changed:
            self.error = self.error or error
            self.stopped = True
            self.changed.notify_all()


class Channel(Generic[T]):
    """A queue of at most `capacity` items. A ring of buffers is one that holds those that are free."""

    def __init__(self, threads: Threads, capacity: int, items: Iterable[T] = ()) -> None:
        self._changed = threads.changed
        self._threads = threads
        self._capacity = capacity
        self._items = deque(items)

    def put(self, item: T) -> None:
        """Wait for room. Raises Stopped when the execution ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._threads.stopped or len(self._items) < self._capacity)
            if self._threads.stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Wait for an item. Raises Stopped when the execution ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._threads.stopped or bool(self._items))
            if self._threads.stopped:
                raise Stopped
            item = self._items.popleft()
            self._changed.notify_all()
            return item
