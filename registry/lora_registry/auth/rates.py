"""Limits on how often a caller may ask, by class of request."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

from lora_contract.errors import RegistryError

RequestClass = Literal["reads", "writes", "jobs", "failures"]
"""`jobs`: requests that start work on a worker. `failures`: requests without a valid token, by address."""

OPTION: Final = "request_class"
"""Key of the routes' option that names their class; without it, it follows from the method."""

_MINUTE: Final = 60.0
_MANY: Final = 10_000


class Rates:
    """Counts requests in the memory of this process: with N processes, a caller may ask up to N times as often.

    The generic cell rate algorithm: a time for each caller and class. A caller may use the requests of a minute at
    once, and then as fast as they come back. Thread-safe.

    per_minute: requests a minute by class; a class that is missing, or 0, has no limit. clock: seconds, monotonic.
    """

    def __init__(self, per_minute: Mapping[RequestClass, int], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._spent: dict[tuple[str, RequestClass], float] = {}
        """When the requests made so far are earned back."""

    def take(self, who: str, kind: RequestClass) -> None:
        """Count a request. Raises `rate-limited`, with the seconds to wait, if the caller has none left."""
        limit = self._per_minute.get(kind, 0)
        if not limit:
            return
        each, now = _MINUTE / limit, self._clock()
        with self._lock:
            spent = max(self._spent.get((who, kind), now), now)
            wait = spent + each - _MINUTE - now
            if wait <= 0:
                self._spent[who, kind] = spent + each
                if len(self._spent) > _MANY:
                    self._spent = {key: at for key, at in self._spent.items() if at > now}
        if wait > 0:
            raise RegistryError(
                "rate-limited",
                f"You may send {limit} requests of the class {kind} a minute.",
                retry_after=max(1, math.ceil(wait)),
                limit=limit,
            )
