"""Jobs as clients see them: our row describes a job, the engine knows its state."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from itertools import islice
from typing import Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.wire.jobs import JobList, JobProgress, JobProgressList, JobView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.context import Context
from lora_registry.db.tables import JobRow
from lora_registry.jobs import store
from lora_registry.jobs.engine.lease_store import served_queues
from lora_registry.jobs.engine.port import JobStatus
from lora_registry.repositories import store as catalog
from lora_registry.repositories import views
from lora_registry.runtime import paging
from lora_registry.runtime.clock import iso

MAX_RECORDS: Final = 500
MIN_PREFIX: Final = 6
"""Minimum length of a prefix."""
MAX_LISTED: Final = 5
"""Maximum number of jobs named in an error about an ambiguous prefix."""


def show(caller: Caller, job_id: str) -> JobView:
    """job_id: here and below, a full id or a prefix of only one visible job."""
    with caller.ctx.db.read() as session:
        row = _find(session, caller.principal, job_id)
    return _views(caller.ctx, [row.id])[0]


def list_all(
    caller: Caller,
    *,
    kind: str | None,
    exclude_kind: str | None,
    state: str | None,
    cursor: str | None,
    limit: int,
) -> JobList:
    """List jobs, newest first. A filter by state may leave a page short: follow `next_cursor`."""
    before = paging.decode(cursor, int, str)
    with caller.ctx.db.read() as session:
        rows = store.jobs(
            session,
            namespace=caller.principal.visible(),
            kind=kind,
            exclude_kind=exclude_kind,
            before=(before[0], before[1]) if before else None,
            limit=limit,
        )
    items = _views(caller.ctx, [row.id for row in rows])
    return JobList(
        items=[item for item in items if state in (None, item.state)],
        next_cursor=paging.encode(rows[-1].created_at, rows[-1].id) if len(rows) == limit else None,
    )


def progress(caller: Caller, job_id: str, *, offset: int) -> JobProgressList:
    """Return the records written so far, from `offset` on."""
    with caller.ctx.db.read() as session:
        row = _find(session, caller.principal, job_id)
    state = _status(caller.ctx, row.id).state  # before the records: those of a terminal job are then complete
    records = list(islice(caller.ctx.jobs.follow(row.id, offset, timeout=0.0), MAX_RECORDS))
    return JobProgressList(
        state=state,
        items=[
            JobProgress(
                offset=r.offset,
                at=iso(int(r.at * 1e6)),
                step=r.step,
                message=r.message,
                done=r.done,
                total=r.total,
                unit=r.unit,
            )
            for r in records
        ],
    )


def cancel(caller: Caller, job_id: str) -> JobView:
    row = _writable(caller, job_id)
    caller.ctx.jobs.cancel(row.id)
    return show(caller, row.id)


def retry(caller: Caller, job_id: str) -> JobView:
    row = _writable(caller, job_id)
    caller.ctx.jobs.retry(row.id)
    return show(caller, row.id)


def _writable(caller: Caller, job_id: str) -> JobRow:
    with caller.ctx.db.read() as session:
        row = _find(session, caller.principal, job_id)
        caller.require("writer", row.namespace)
        return row


def _find(session: Session, principal: Principal, job_id: str) -> JobRow:
    """Raise `not-found`, or `invalid-request` if several visible jobs have this prefix."""
    row = store.job(session, job_id)
    if row is not None and principal.may("reader", row.namespace):
        return row
    found = []
    if len(job_id) >= MIN_PREFIX:
        found = store.jobs_by_prefix(session, job_id, namespace=principal.visible(), limit=MAX_LISTED + 1)
    if not found:
        raise RegistryError(
            "not-found", f"There is no job {job_id[:80]!r}.", hint="List the jobs with `lora-reg job list`."
        )
    if len(found) > 1:
        ids = ", ".join(job.id for job in found[:MAX_LISTED])
        more = ", and others" if len(found) > MAX_LISTED else ""
        raise RegistryError(
            "invalid-request",
            f"Several jobs begin with {job_id!r}: {ids}{more}.",
            hint="Give more characters of the job id.",
        )
    return found[0]


def _status(ctx: Context, job_id: str) -> JobStatus:
    status = ctx.jobs.status(job_id)
    if status is None:
        raise RegistryError("not-found", f"The job engine no longer has the job {job_id[:80]!r}.")
    return status


def _views(ctx: Context, job_ids: Sequence[str]) -> list[JobView]:
    """Query the engine before our rows, so that the rows contain the result of a finished job."""
    statuses = [_status(ctx, job_id) for job_id in job_ids]
    with ctx.db.read() as session:
        rows = [(store.job(session, job_id), status) for job_id, status in zip(job_ids, statuses, strict=True)]
        queues = served_queues(session) if any(status.state == "queued" for status in statuses) else set()
        return [_view(session, row, status, queues) for row, status in rows if row is not None]


def _view(session: Session, row: JobRow, status: JobStatus, queues: Set[str]) -> JobView:
    """queues: those that live workers serve."""
    result = None
    if row.result_version_id is not None:
        found = catalog.versions_by_id(session, [row.result_version_id])
        result = views.refs(session, list(found.values()))[row.result_version_id]
    recipe = store.recipe(session, row.recipe_digest) if row.recipe_digest else None
    unserved = status.state == "queued" and status.queue not in queues
    return JobView(
        id=row.id,
        kind=row.kind,
        state=status.state,
        queue=status.queue,
        created_at=iso(row.created_at),
        updated_at=iso(int(status.updated_at * 1e6)),
        title=row.title,
        worker=status.worker,
        attempts=status.attempts,
        waiting_for=f"a worker that takes jobs from the queue {status.queue}; none is running" if unserved else None,
        error=status.error,
        error_code=status.error_code,
        result=result,
        recipe={**json.loads(recipe.body), "digest": recipe.digest} if recipe else None,
    )
