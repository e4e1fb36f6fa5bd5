"""Port of the job engine: everything that the service needs from it.

The caller chooses a job's id (`<kind>-<recipe digest>` or similar): the same id is always the same job.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import msgspec
from sqlalchemy.orm import Session

from lora_registry.jobs.engine.ended import EngineRows
from lora_registry.jobs.engine.kinds import JobKind, SpecT

State = Literal["queued", "running", "done", "failed", "cancelled"]
TERMINAL: tuple[State, ...] = ("done", "failed", "cancelled")
Queue = Literal["cpu", "gpu"]


class JobStatus(msgspec.Struct, frozen=True):
    """State of a job in the engine. Times are seconds since the epoch (UTC).

    worker: the executor that runs or ran it. error, error_hint: of the last error; None unless failed. attempts: number
    of starts (more than one after a crash).
    """

    id: str
    kind: str
    state: State
    queue: str
    created_at: float
    updated_at: float
    worker: str | None = None
    error: str | None = None
    error_code: str | None = None
    error_hint: str | None = None
    attempts: int = 0
    result: Any = None


class ProgressRecord(msgspec.Struct, frozen=True):
    """One progress record. `offset` counts from 0; a follower resumes from it after a lost connection.

    done/total: units of work (`unit`, such as "bytes" or "tensors"); total None if unknown.
    A step that runs again after a crash repeats records: read them as states, not as increments.
    """

    offset: int
    at: float
    step: str
    message: str
    done: int = 0
    total: int | None = None
    unit: str = ""


class JobEngine(Protocol):
    rows: EngineRows

    def enqueue(
        self, session: Session, kind: JobKind[SpecT], spec: SpecT, *, job_id: str, queue: Queue = "cpu"
    ) -> None:
        """Enqueue inside the caller's transaction: the job exists if and only if the transaction commits.

        The same id again is a no-op, even after that job has ended.
        """

    def status(self, job_id: str) -> JobStatus | None: ...

    def list(
        self, *, kind: str | None = None, state: State | None = None, limit: int = 100, before: float | None = None
    ) -> list[JobStatus]:
        """Return jobs, newest first. before: `created_at` of the last job of the previous page."""

    def cancel(self, job_id: str) -> None:
        """Cancel a job that has not ended; its child process is killed within a few seconds. Idempotent."""

    def follow(self, job_id: str, offset: int = 0, timeout: float | None = None) -> Iterator[ProgressRecord]:
        """Yield the records from `offset` on, until the job has ended or `timeout` seconds passed without a record."""

    def retry(self, job_id: str) -> None:
        """Restart a job that failed or was cancelled, under the same id. Finished steps are not repeated
        if their results are kept. Raises RegistryError `conflict` unless the job is failed or cancelled."""

    def close(self) -> None: ...
