"""Jobs that the database counts as this worker's, and that it does not run.

The engine claims jobs in a transaction of its own. If the connection breaks after the commit and before the answer, the
worker does not learn what it claimed, and no other worker looks for jobs of one that has a lease.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


class LostClaims:
    """Finds such jobs and requeues them.

    patience: seconds that a claimed job may take to start. requeue: requeues a job; its results are fenced, so it does
    no harm if the job has started just now.
    """

    def __init__(self, *, patience: float, requeue: Callable[[str], None]) -> None:
        self._patience = patience
        self._requeue = requeue
        self._running: set[str] = set()
        self._idle_since: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def running(self, job_id: str) -> Iterator[None]:
        with self._lock:
            self._running.add(job_id)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(job_id)

    def sweep(self, claimed: Collection[str]) -> list[str]:
        """Make one pass over the jobs that the database counts as ours; return those that were requeued."""
        now = time.monotonic()
        with self._lock:
            idle = set(claimed) - self._running
        self._idle_since = {job_id: self._idle_since.get(job_id, now) for job_id in idle}
        lost = sorted(job_id for job_id, since in self._idle_since.items() if now - since > self._patience)
        for job_id in lost:
            _log.warning("The job %s was claimed and never started; it is requeued.", job_id)
            self._requeue(job_id)
            del self._idle_since[job_id]
        return lost
