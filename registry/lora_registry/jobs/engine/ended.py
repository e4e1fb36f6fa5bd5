"""The engine's rows of jobs, read and removed inside the caller's transaction.

The open-source engine keeps them for ever, and deletes by transactions of its own only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Select
from sqlalchemy.orm import Session

ACTIVE: Final = ("DELAYED", "ENQUEUED", "PENDING")

_BY_JOB: Final = {
    "streams": "workflow_uuid",
    "workflow_events": "workflow_uuid",
    "workflow_events_history": "workflow_uuid",
    "notifications": "destination_uuid",
    "workflow_input": "workflow_uuid",
    "workflow_output": "workflow_uuid",
    "operation_outputs": "workflow_uuid",
    "datasource_outputs": "workflow_id",
    "workflow_status": "workflow_uuid",
}
"""Tables with the column of the job's id; that of the jobs themselves is the last."""


class EngineRows:
    """Its tables, which are in a schema of their own on PostgreSQL. Times are microseconds since the epoch."""

    def __init__(self, *, sqlite: bool) -> None:
        schema = None if sqlite else "dbos"
        self._tables = {name: sa.table(name, sa.column(key), schema=schema) for name, key in _BY_JOB.items()}
        columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in ("workflow_uuid", "status", "updated_at")]
        self._status = sa.table("workflow_status", *columns, schema=schema)

    def active(self) -> Select[tuple[str]]:
        """Select the ids of the jobs that are queued or running."""
        return sa.select(self._status.c.workflow_uuid).where(self._status.c.status.in_(ACTIVE))

    def ended(self, before: int) -> Select[tuple[str]]:
        """Select the ids of the jobs that have ended before a time."""
        return sa.select(self._status.c.workflow_uuid).where(
            self._status.c.status.not_in(ACTIVE), self._status.c.updated_at < before // 1000
        )

    def states(self, session: Session, job_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Return the engine's word for the state of jobs, and when it changed."""
        found = self._status.c
        query = sa.select(found.workflow_uuid, found.status, found.updated_at).where(found.workflow_uuid.in_(job_ids))
        return {job: (status, at * 1000) for job, status, at in session.execute(query)}

    def remove(self, session: Session, job_ids: Sequence[str], *, before: int) -> set[str]:
        """Remove all that the engine has of those of these jobs that ended before a time. Return their ids.

        Their rows are locked first: a job that was restarted meanwhile stays.
        """
        rows = self.ended(before).where(self._status.c.workflow_uuid.in_(job_ids))
        locked = session.execute(rows.with_for_update(skip_locked=True, of=self._status))
        gone = {str(job) for (job,) in locked}
        for name, key in _BY_JOB.items():
            table = self._tables[name]
            session.execute(sa.delete(table).where(table.c[key].in_(gone)))
        return gone

    def with_progress(self, *, before: int, limit: int | None) -> Select[tuple[str]]:
        """Select the ids of jobs that ended before a time and still have records of their progress."""
        stream = self._tables["streams"]
        has = sa.exists().where(stream.c.workflow_uuid == self._status.c.workflow_uuid)
        return self.ended(before).where(has).limit(limit)

    def remove_progress(self, session: Session, *, before: int, limit: int) -> int:
        """Remove the records of jobs that ended before a time. Return the number of jobs."""
        ids = list(session.scalars(self.with_progress(before=before, limit=limit)))
        stream = self._tables["streams"]
        session.execute(sa.delete(stream).where(stream.c.workflow_uuid.in_(ids)))
        return len(ids)
