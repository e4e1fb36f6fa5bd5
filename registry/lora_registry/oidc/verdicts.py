"""Results of verifications, kept for a short time and in bounded number."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

SECONDS: Final = 60.0
"""The longest time for which a rule that was removed, or a key that was withdrawn, still counts."""
MAX_VERDICTS: Final = 4096


class Verdicts(Generic[T]):
    """Results by the sha256 of a token. Thread-safe. clock: seconds since the epoch."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, T]] = {}

    def get(self, key: str) -> T | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            if found[0] <= self._clock():
                del self._kept[key]
                return None
            return found[1]

    def put(self, key: str, value: T, *, until: float) -> None:
        """Keep a result until the token expires, at most for a minute."""
        with self._lock:
            while len(self._kept) >= MAX_VERDICTS:
                del self._kept[next(iter(self._kept))]  # the oldest
            self._kept[key] = (min(until, self._clock() + SECONDS), value)
