"""Failure detector: each worker renews a lease, and requeues the jobs of workers without one.

By itself the engine resumes the jobs of a dead process only when a process with the same executor id starts. Here every
worker checks, once per tick, for running jobs whose worker has no lease, and requeues them. This is idempotent and
needs no leader. If a live worker's lease expires, one step is repeated; a second result is impossible, since the engine
fences.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from lora_registry.jobs.engine import lease_store as store

_log = logging.getLogger(__name__)


class Heartbeat(threading.Thread):
    """Renews the lease every `beat_seconds`; calls `on_lost` once if it is missing or could not be renewed in time."""

    def __init__(
        self,
        engine: Engine,
        *,
        executor_id: str,
        instance: str,
        lease_seconds: float,
        beat_seconds: float,
        on_lost: Callable[[str], None],
    ) -> None:
        super().__init__(name="lease-heartbeat", daemon=True)
        self._engine = engine
        self._executor_id = executor_id
        self._instance = instance
        self._lease_seconds = lease_seconds
        self._beat_seconds = beat_seconds
        self._on_lost = on_lost
        self._halt = threading.Event()

    def run(self) -> None:
        renewed = time.monotonic()
        while not self._halt.wait(self._beat_seconds):
            started = time.monotonic()
            try:
                if not store.beat(self._engine, executor_id=self._executor_id, instance=self._instance):
                    self._on_lost("its lease was removed by another worker")
                    return
                renewed = started
            except SQLAlchemyError as error:
                _log.warning("The lease could not be renewed: %s", error)
                if time.monotonic() - renewed > self._lease_seconds:
                    self._on_lost("its lease could not be renewed in time")
                    return

    def stop(self) -> None:
        self._halt.set()


class Reaper(threading.Thread):
    """Requeues the running jobs of executors without a lease, every `tick_seconds`.

    running: returns the executor ids of running jobs. recover: requeues the jobs of these executors.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        executor_id: str,
        tick_seconds: float,
        running: Callable[[], set[str]],
        recover: Callable[[list[str]], None],
    ) -> None:
        super().__init__(name="lease-reaper", daemon=True)
        self._engine = engine
        self._executor_id = executor_id
        self._tick_seconds = tick_seconds
        self._running = running
        self._recover = recover
        self._halt = threading.Event()

    def run(self) -> None:
        while not self._halt.wait(self._tick_seconds):
            try:
                self.sweep()
            except Exception as error:  # noqa: BLE001  the engine's own too: without this thread no job is taken over
                _log.warning("The check for dead workers failed and will be retried: %s", error)

    def sweep(self) -> list[str]:
        """Make one pass; return the executors whose jobs were requeued."""
        store.drop_expired(self._engine, exclude=self._executor_id)
        # Read the jobs before the leases: a worker claims its lease before its first job.
        running = self._running()
        dead = sorted(running - store.holders(self._engine) - {self._executor_id})
        if dead:
            _log.warning("Taking over the jobs of %s", ", ".join(dead))
            self._recover(dead)
        return dead

    def stop(self) -> None:
        self._halt.set()
