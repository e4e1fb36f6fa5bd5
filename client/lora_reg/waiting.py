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
_PAUSE: Final = 0.2

A = TypeVar("A")


def follow(
    client: Client, job_id: str, *, timeout: float | None = None, tell: Callable[[JobProgress], None] | None = None
) -> JobView:
    """Wait until a job has ended, well or not. tell: called with every item of its progress, from the first on.

    timeout: seconds, None for ever. Raises `pending` when they are over; the job goes on.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    offset = 0
    while True:
        left = POLL_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        asked = time.monotonic()
        page = client.job_progress(job_id, offset=offset, wait=int(min(left, POLL_SECONDS)))
        for item in page.items:
            offset = item.offset + 1
            if tell is not None:
                tell(item)
        if not page.items:
            if page.state in ENDED:
                return client.job(job_id)
            if deadline is not None and time.monotonic() >= deadline:
                raise RegistryError(
                    "pending",
                    f"The job {job_id} is {page.state} after {timeout:g} seconds.",
                    hint=f"It goes on; take the wait up again with `lora-reg job wait {job_id}`.",
                )
            if time.monotonic() - asked < _PAUSE:
                time.sleep(_PAUSE)


def require_done(job: JobView) -> JobView:
    """The job, where it ended well. Raises with the job's own code where it is one of the table, else `job-failed`."""
    if job.state == "done":
        return job
    if job.state == "cancelled":
        raise RegistryError(
            "job-failed",
            f"The job {job.id} was cancelled.",
            hint=f"Start it again with `lora-reg job retry {job.id}`.",
        )
    code = known_code(job.error_code) or "job-failed"
    detail = job.error or f"The job {job.id} failed."
    raise RegistryError(
        code,
        detail,
        hint=None
        if code != "job-failed"
        else f"Read `lora-reg job logs {job.id}`, mend the cause, then `lora-reg job retry {job.id}`.",
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
