"""Jobs as clients see them: our row describes a job, the engine knows its state."""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import islice
from typing import Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.wire.jobs import JobList, JobProgress, JobProgressList, JobView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import absent
from lora_registry.context import Context
from lora_registry.db.tables import JobRow
from lora_registry.jobs import names, quota, store
from lora_registry.jobs.engine.lease_store import served_queues
from lora_registry.jobs.engine.port import JobStatus
from lora_registry.repositories import resolve, views
from lora_registry.repositories import store as catalog
from lora_registry.repositories.paths import RepositoryPath
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
    for view in _views(caller, [row.id]):
        return view
    raise _removed(row.id)


def list_all(
    caller: Caller,
    *,
    kind: str | None,
    exclude_kind: str | None,
    state: str | None,
    cursor: str | None,
    limit: int,
) -> JobList:
    """List jobs of namespaces in which the caller has a grant, newest first. Visibility does not open them.

    A filter by state may leave a page short: follow `next_cursor`.
    """
    caller.require_signed_in()
    before = paging.decode(cursor, int, str)
    with caller.ctx.db.read() as session:
        rows = store.jobs(
            session,
            caller.principal.granted("reader"),
            kind=kind,
            exclude_kind=exclude_kind,
            before=(before[0], before[1]) if before else None,
            limit=limit,
        )
    items = _views(caller, [row.id for row in rows])
    return JobList(
        items=[item for item in items if state in (None, item.state)],
        next_cursor=paging.encode(rows[-1].created_at, rows[-1].id) if len(rows) == limit else None,
    )


def progress(caller: Caller, job_id: str, *, offset: int) -> JobProgressList:
    """Return the records written so far, from `offset` on."""
    with caller.ctx.db.read() as session:
        row = _find(session, caller.principal, job_id)
        hidden = names.hidden_mentions(session, caller.principal, [row])[row.id]
    state = _status(caller.ctx, row.id).state  # before the records: those of a terminal job are then complete
    records = list(islice(caller.ctx.jobs.follow(row.id, offset, timeout=0.0), MAX_RECORDS))
    return JobProgressList(
        state=state,
        items=[
            JobProgress(
                offset=r.offset,
                at=iso(int(r.at * 1e6)),
                step=names.redact(r.step, hidden),
                message=names.redact(r.message, hidden),
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
    restart(caller.ctx, row.id)
    return show(caller, row.id)


def restart(ctx: Context, job_id: str) -> None:
    """Restart a job that failed or was cancelled. Raises `conflict` if it is neither, and `quota`."""
    with ctx.db.write() as session:
        quota.reserve(session, ctx.jobs.rows, job_id)
    try:
        ctx.jobs.retry(job_id)
    finally:
        with ctx.db.write() as session:
            quota.release(session, job_id)


def restart_ended(ctx: Context, job_id: str) -> None:
    """Restart a job if it failed or was cancelled, and nobody else has restarted it. Raises `quota`."""
    status = ctx.jobs.status(job_id)
    if status is not None and status.state in ("failed", "cancelled"):
        try:
            restart(ctx, job_id)
        except RegistryError as error:
            if error.code != "conflict":
                raise


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
        found = store.jobs_by_prefix(session, job_id, principal.granted("reader"), limit=MAX_LISTED + 1)
    if not found:
        raise absent(principal, f"There is no job {job_id[:80]!r}.", hint="List the jobs with `lora-reg job list`.")
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
        raise _removed(job_id)
    return status


def _removed(job_id: str) -> RegistryError:
    return RegistryError("not-found", f"The job {job_id[:80]!r} was removed a moment ago, since it ended long ago.")


def _views(caller: Caller, job_ids: Sequence[str]) -> list[JobView]:
    """Query the engine before our rows, so that the rows contain the result of a finished job.

    Jobs that are removed meanwhile are left out.
    """
    ctx = caller.ctx
    statuses = [status for job_id in job_ids if (status := ctx.jobs.status(job_id)) is not None]
    with ctx.db.read() as session:
        found = [(store.job(session, status.id), status) for status in statuses]
        rows = [(row, status) for row, status in found if row is not None]
        queues = served_queues(session) if any(status.state == "queued" for status in statuses) else set()
        hidden = names.hidden_mentions(session, caller.principal, [row for row, _ in rows])
        return [_view(session, caller.principal, row, status, queues, hidden[row.id]) for row, status in rows]


def _view(
    session: Session, principal: Principal, row: JobRow, status: JobStatus, queues: Set[str], hidden: Set[str]
) -> JobView:
    """queues: those that live workers serve. hidden: names that the caller may not read."""
    result = None
    if row.result_version_id is not None:
        found = catalog.versions_by_id(session, [row.result_version_id])
        result = views.refs(session, list(found.values()))[row.result_version_id]
    recipe = store.recipe_body(session, row.recipe_digest) if row.recipe_digest else None
    if recipe and "base_name" in recipe and not _names_readable(session, principal, recipe["base_name"]):
        del recipe["base_name"]
    unserved = status.state == "queued" and status.queue not in queues
    return JobView(
        id=row.id,
        kind=row.kind,
        state=status.state,
        queue=status.queue,
        created_at=iso(row.created_at),
        updated_at=iso(int(status.updated_at * 1e6)),
        title=names.redact(row.title, hidden),
        worker=status.worker,
        attempts=status.attempts,
        waiting_for=f"a worker that takes jobs from the queue {status.queue}; none is running" if unserved else None,
        error=None if status.error is None else names.redact(status.error, hidden),
        error_code=status.error_code,
        error_hint=None if status.error_hint is None else names.redact(status.error_hint, hidden),
        result=result,
        recipe=recipe or None,
    )


def _names_readable(session: Session, principal: Principal, repository: str) -> bool:
    namespace, _, name = repository.partition("/")
    try:
        resolve.readable(session, principal, RepositoryPath(namespace, name))
    except RegistryError:
        return False
    return True
