"""Waiting for jobs and gates. A wait can be interrupted and resumed from any machine by the job's id."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from lora_contract.errors import RegistryError, known_code
from lora_contract.wire.gates import GateView
from lora_contract.wire.jobs import JobProgress, JobView
from lora_reg.client import POLL_SECONDS, Client

ENDED: Final = frozenset({"done", "failed", "cancelled"})
ROUNDS: Final = 8
"""How often a gate is asked: the tag's target may change during a wait, and then another version must be measured."""
UNCLAIMED_SECONDS: Final = 5.0
_PAUSE: Final = 0.2

A = TypeVar("A")


def follow(
    client: Client,
    job_id: str,
    *,
    timeout: float | None = None,
    report: Callable[[JobProgress], None] | None = None,
    unclaimed: Callable[[JobView], None] | None = None,
) -> JobView:
    """Wait until a job has ended, whether it succeeded or not.

    Args:
        client: of the registry.
        job_id: the job's id, or a prefix of it that no other job's id has.
        timeout: seconds; None waits forever. Raises `pending` when they are over; the job continues.
        report: called with each progress record, from the first.
        unclaimed: called once if no worker has taken the job after UNCLAIMED_SECONDS.
    """
    begun = time.monotonic()
    deadline = None if timeout is None else begun + timeout
    offset = 0
    while True:
        left = POLL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        asked = time.monotonic()
        # While it may be unclaimed, polls are short, so that a person hears of it soon.
        patience = POLL_SECONDS if unclaimed is None else 1
        page = client.job_progress(job_id, offset=offset, wait=int(min(left, patience)))
        if page.state != "queued":
            unclaimed = None
        elif unclaimed is not None and asked - begun >= UNCLAIMED_SECONDS:
            unclaimed(client.job(job_id))
            unclaimed = None
        for item in page.items:
            offset = item.offset + 1
            if report is not None:
                report(item)
        if not page.items:
            if page.state in ENDED:
                return client.job(job_id)
            if deadline is not None and time.monotonic() >= deadline:
                raise RegistryError(
                    "pending",
                    f"The job is {page.state} after {timeout:g} seconds.",
                    hint=f"The job is still running; resume waiting with `lora-reg job wait {job_id}`.",
                )
            if time.monotonic() - asked < _PAUSE:
                time.sleep(_PAUSE)


def require_done(job: JobView) -> JobView:
    """Return the job if it is done. Raises RegistryError with the job's own code if it is known, else `job-failed`."""
    if job.state == "done":
        return job
    if job.state == "cancelled":
        raise RegistryError(
            "job-failed",
            f"The job {job.id} was cancelled.",
            hint=f"Restart it with `lora-reg job retry {job.id}`.",
        )
    code = known_code(job.error_code) or "job-failed"
    detail = job.error or f"The job {job.id} failed."
    raise RegistryError(
        code,
        detail,
        hint=job.error_hint
        if code != "job-failed"
        else f"Read `lora-reg job logs {job.id}`, fix the cause, then `lora-reg job retry {job.id}`.",
    )


def until_decided(ask: Callable[[], A], gate_of: Callable[[A], GateView], wait: Callable[[str], JobView]) -> A:
    """Ask until the gate is decided, and wait for missing validations in between.

    ask: sends the request. gate_of: the gate in its answer. wait: waits for a job by its id. Raises the error of a
    validation that failed.
    """
    for _ in range(ROUNDS):
        answer = ask()
        view = gate_of(answer)
        if view.allowed is not None or not view.jobs:
            return answer
        for job in view.jobs:
            require_done(job if job.state == "done" else wait(job.id))
    raise RegistryError(
        "pending", f"The gate is still undecided after {ROUNDS} rounds of validations.", hint="Run the gate again."
    )
