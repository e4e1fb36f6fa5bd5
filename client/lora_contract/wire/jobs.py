"""Jobs and their progress, reports and events."""

from __future__ import annotations

from typing import Any

from lora_contract.findings import Finding
from lora_contract.wire.common import Response
from lora_contract.wire.repositories import VersionRef


class JobView(Response, frozen=True):
    """A job.

    Args:
        state: queued, running, done, failed or cancelled.
        waiting_for: why a queued job does not start, as a noun phrase ("a worker that takes jobs from the queue gpu;
            none is running"); None if a live worker serves its queue, or if it is not queued.
        result: the version that the job made, if any.
    """

    id: str
    kind: str
    state: str
    queue: str
    created_at: str
    updated_at: str
    title: str = ""
    worker: str | None = None
    attempts: int = 0
    waiting_for: str | None = None
    error: str | None = None
    error_code: str | None = None
    error_hint: str | None = None
    result: VersionRef | None = None
    recipe: dict[str, Any] | None = None


class JobList(Response, frozen=True):
    items: list[JobView]
    next_cursor: str | None = None


class JobProgress(Response, frozen=True):
    offset: int
    at: str
    step: str
    message: str
    done: int = 0
    total: int | None = None
    unit: str = ""


class JobProgressList(Response, frozen=True):
    """state: of the job at the time of the response; if it has ended and `items` is empty, there is no more."""

    state: str
    items: list[JobProgress]


class ReportView(Response, frozen=True):
    """The result of a validation; immutable, bound to the version's digest."""

    id: str
    kind: str
    version: str
    created_at: str
    passed: bool
    findings: list[Finding] = []
    body: dict[str, Any] = {}


class ReportList(Response, frozen=True):
    items: list[ReportView]


class EventView(Response, frozen=True):
    id: int
    kind: str
    at: str
    actor: str
    subject: str
    facts: dict[str, Any]


class EventList(Response, frozen=True):
    items: list[EventView]
    next_cursor: str | None = None
