"""Jobs as callers see them: our row says what it is about, the engine says how it stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.wire.jobs import JobList, JobProgress, JobProgressList, JobView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.context import Context
from lora_registry.db.tables import JobRow
from lora_registry.jobs import store
from lora_registry.jobs.engine.port import JobStatus
from lora_registry.repositories import store as catalog
from lora_registry.repositories import views
from lora_registry.runtime import paging
from lora_registry.runtime.clock import iso

MAX_RECORDS = 500


def show(caller: Caller, job_id: str) -> JobView:
    with caller.ctx.db.read() as session:
        _own(session, caller.principal, job_id)
    return _views(caller.ctx, [job_id])[0]


def list_all(caller: Caller, *, kind: str | None, state: str | None, cursor: str | None, limit: int) -> JobList:
    """Newest first. A filter by state may leave a page short; follow `next_cursor`."""
    before = paging.decode(cursor, int, str)
    with caller.ctx.db.read() as session:
        rows = store.jobs(
            session,
            namespace=caller.principal.visible(),
            kind=kind,
            before=(before[0], before[1]) if before else None,
            limit=limit,
        )
    items = _views(caller.ctx, [row.id for row in rows])
    return JobList(
        items=[item for item in items if state in (None, item.state)],
        next_cursor=paging.encode(rows[-1].created_at, rows[-1].id) if len(rows) == limit else None,
    )


def progress(caller: Caller, job_id: str, *, offset: int) -> JobProgressList:
    """The records from `offset` on that there are now."""
    with caller.ctx.db.read() as session:
        _own(session, caller.principal, job_id)
    state = _status(caller.ctx, job_id).state  # before the records: those of an ended job are then complete
    records = list(islice(caller.ctx.jobs.follow(job_id, offset, timeout=0.0), MAX_RECORDS))
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
    _require_writer(caller, job_id)
    caller.ctx.jobs.cancel(job_id)
    return show(caller, job_id)


def retry(caller: Caller, job_id: str) -> JobView:
    _require_writer(caller, job_id)
    caller.ctx.jobs.retry(job_id)
    return show(caller, job_id)


def _require_writer(caller: Caller, job_id: str) -> None:
    with caller.ctx.db.read() as session:
        caller.require("writer", _own(session, caller.principal, job_id).namespace)


def _own(session: Session, principal: Principal, job_id: str) -> JobRow:
    row = store.job(session, job_id)
    if row is None or not principal.may("reader", row.namespace):
        raise RegistryError(
            "not-found", f"There is no job {job_id[:80]!r}.", hint="`lora-reg job list` shows the jobs."
        )
    return row


def _status(ctx: Context, job_id: str) -> JobStatus:
    status = ctx.jobs.status(job_id)
    if status is None:
        raise RegistryError("not-found", f"The engine does not know the job {job_id[:80]!r} any more.")
    return status


def _views(ctx: Context, job_ids: Sequence[str]) -> list[JobView]:
    """The engine's word first, then our rows: what a job that is done has made is then there to be read."""
    statuses = [_status(ctx, job_id) for job_id in job_ids]
    with ctx.db.read() as session:
        rows = [(store.job(session, job_id), status) for job_id, status in zip(job_ids, statuses, strict=True)]
        return [_view(session, row, status) for row, status in rows if row is not None]


def _view(session: Session, row: JobRow, status: JobStatus) -> JobView:
    result = None
    if row.result_version_id is not None:
        found = catalog.versions_by_id(session, [row.result_version_id])
        result = views.refs(session, list(found.values()))[row.result_version_id]
    recipe = store.recipe(session, row.recipe_digest) if row.recipe_digest else None
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
        error=status.error,
        error_code=status.error_code,
        result=result,
        recipe={**json.loads(recipe.body), "digest": recipe.digest} if recipe else None,
    )
