"""SQL of old records, by kind: which are due, what an export of them says, and their removal.

What must outlive its time is not due: the newest event and decision (their ids must not be given again), decisions that
a tag's history names and the newest of each version and tag, reports that a decision names, the newest report of each
kind on a live version, reports whose job is kept, and jobs with the recipe of a live version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Select, exists, func, or_
from sqlalchemy.orm import aliased
from sqlmodel import Session, SQLModel, col, delete, select

from lora_registry.db.tables import AuditEvent, DecisionRow, JobRow, ReportRow, Repository, TagMove, Version
from lora_registry.jobs.engine.ended import EngineRows

Key: TypeAlias = int | str


@dataclass(frozen=True, slots=True)
class Cutoff:
    """Records from before a time, in microseconds, are old. engine: rows of the job engine."""

    at: int
    engine: EngineRows


@dataclass(frozen=True, slots=True)
class RecordKind:
    """A kind of records.

    Args:
        name: of its folder of exports.
        due: selects key and time of what may go, oldest first.
        rows: the JSON of these records, in the order of their keys.
        remove: removes those of these records that may still go. Return their number.
    """

    name: str
    key: type[int] | type[str]
    due: Callable[[Cutoff], Select[Any, Any]]
    rows: Callable[[Session, Cutoff, Sequence[Key]], list[dict[str, Any]]]
    remove: Callable[[Session, Cutoff, Sequence[Key]], int]


def _due_events(cutoff: Cutoff) -> Select[Any, Any]:
    """Events before the first one that is not old: a reader that goes on behind them misses none that stays."""
    stays = select(AuditEvent.id).where(AuditEvent.at >= cutoff.at).order_by(col(AuditEvent.id)).limit(1)
    bound = func.coalesce(stays.scalar_subquery(), select(func.max(AuditEvent.id)).scalar_subquery())
    newest = select(func.max(AuditEvent.id)).scalar_subquery()
    query = sa.select(col(AuditEvent.id), col(AuditEvent.at)).where(
        col(AuditEvent.id) < bound, col(AuditEvent.id) < newest
    )
    return query.order_by(col(AuditEvent.id))


def _due_decisions(cutoff: Cutoff) -> Select[Any, Any]:
    later = aliased(DecisionRow)
    return (
        sa.select(col(DecisionRow.id), col(DecisionRow.created_at))
        .where(
            col(DecisionRow.created_at) < cutoff.at,
            ~exists().where(col(TagMove.decision_id) == col(DecisionRow.id)),
            exists().where(
                col(later.version_id) == col(DecisionRow.version_id),
                col(later.tag) == col(DecisionRow.tag),
                col(later.id) > col(DecisionRow.id),
            ),
        )
        .order_by(col(DecisionRow.id))
    )


def _due_reports(cutoff: Cutoff) -> Select[Any, Any]:
    later = aliased(ReportRow)
    newer = or_(
        col(later.created_at) > col(ReportRow.created_at),
        (col(later.created_at) == col(ReportRow.created_at)) & (col(later.id) > col(ReportRow.id)),
    )
    superseded = exists().where(
        col(later.version_id) == col(ReportRow.version_id), col(later.kind) == col(ReportRow.kind), newer
    )
    buried = exists().where(col(Version.id) == col(ReportRow.version_id), col(Version.deleted_at) < cutoff.at)
    return (
        sa.select(col(ReportRow.id), col(ReportRow.created_at))
        .where(
            col(ReportRow.created_at) < cutoff.at,
            or_(superseded, buried),
            ~exists().where(col(DecisionRow.report_id) == col(ReportRow.id)),
            # The engine would not run the job again that makes the report.
            ~exists().where(col(JobRow.id) == col(ReportRow.id)),
        )
        .order_by(col(ReportRow.created_at), col(ReportRow.id))
    )


def _due_jobs(cutoff: Cutoff) -> Select[Any, Any]:
    return (
        sa.select(col(JobRow.id), col(JobRow.created_at))
        .where(
            col(JobRow.created_at) < cutoff.at,
            col(JobRow.id).in_(cutoff.engine.ended(cutoff.at)),
            ~_has_live_result(cutoff),
        )
        .order_by(col(JobRow.created_at), col(JobRow.id))
    )


def _has_live_result(cutoff: Cutoff) -> ColumnElement[bool]:
    """Whether a version has the job's recipe, which is live or was deleted not long ago."""
    return exists().where(
        col(Version.recipe_digest) == col(JobRow.recipe_digest),
        or_(col(Version.deleted_at).is_(None), col(Version.deleted_at) >= cutoff.at),
    )


def _still(
    session: Session, cutoff: Cutoff, due: Callable[[Cutoff], Select[Any, Any]], key: Any, keys: Sequence[Key]
) -> Any:
    """Those of these records that are still due: a statement that begins after the locks were taken."""
    return [row[0] for row in session.execute(due(cutoff).where(key.in_(keys)))]


def _lock_repositories(session: Session, table: Any, keys: Sequence[Key]) -> list[Key]:
    """Lock the repositories of decisions or reports, which whoever refers to one has locked; leave out those that are
    locked already. Return the records in locked ones."""
    found = session.execute(
        select(table.id, Version.repository_id)
        .join(Version, col(Version.id) == table.version_id)
        .where(table.id.in_(keys))
    ).all()
    query = select(Repository.id).where(col(Repository.id).in_({home for _, home in found}))
    locked = set(session.exec(query.order_by(col(Repository.id)).with_for_update(skip_locked=True)))
    return [key for key, home in found if home in locked]


def _remove_events(session: Session, _cutoff: Cutoff, keys: Sequence[Key]) -> int:
    session.exec(delete(AuditEvent).where(col(AuditEvent.id).in_(keys)))
    return len(keys)


def _remove_decisions(session: Session, cutoff: Cutoff, keys: Sequence[Key]) -> int:
    locked = _lock_repositories(session, DecisionRow, keys)
    gone = _still(session, cutoff, _due_decisions, col(DecisionRow.id), locked)
    session.exec(delete(DecisionRow).where(col(DecisionRow.id).in_(gone)))
    return len(gone)


def _remove_reports(session: Session, cutoff: Cutoff, keys: Sequence[Key]) -> int:
    locked = _lock_repositories(session, ReportRow, keys)
    gone = _still(session, cutoff, _due_reports, col(ReportRow.id), locked)
    session.exec(delete(ReportRow).where(col(ReportRow.id).in_(gone)))
    return len(gone)


def _remove_jobs(session: Session, cutoff: Cutoff, keys: Sequence[Key]) -> int:
    """Whoever submits a job again locks its row first, and finds that it is new."""
    rows = select(JobRow.id).where(col(JobRow.id).in_(keys)).order_by(col(JobRow.id))
    locked = list(session.exec(rows.with_for_update(skip_locked=True)))
    gone = cutoff.engine.remove(session, _still(session, cutoff, _due_jobs, col(JobRow.id), locked), before=cutoff.at)
    session.exec(delete(JobRow).where(col(JobRow.id).in_(gone)))
    return len(gone)


def _plain(table: type[SQLModel], *texts: str) -> Callable[[Session, Cutoff, Sequence[Key]], list[dict[str, Any]]]:
    """The columns of rows; texts: those that hold JSON."""

    def rows(session: Session, _cutoff: Cutoff, keys: Sequence[Key]) -> list[dict[str, Any]]:
        key = table.id  # type: ignore[attr-defined]
        found = session.exec(select(table).where(key.in_(keys)).order_by(key))
        return [{**row.model_dump(), **{name: json.loads(getattr(row, name)) for name in texts}} for row in found]

    return rows


def _job_rows(session: Session, cutoff: Cutoff, keys: Sequence[Key]) -> list[dict[str, Any]]:
    states = cutoff.engine.states(session, [str(key) for key in keys])
    rows = _plain(JobRow, "mentions")(session, cutoff, keys)
    for row in rows:
        del row["reserved_until"]
        row["state"], row["updated_at"] = states.get(row["id"], (None, None))
    return rows


EVENTS: Final = RecordKind("events", int, _due_events, _plain(AuditEvent, "facts"), _remove_events)
DECISIONS: Final = RecordKind("decisions", int, _due_decisions, _plain(DecisionRow, "sets", "body"), _remove_decisions)
JOBS: Final = RecordKind("jobs", str, _due_jobs, _job_rows, _remove_jobs)
REPORTS: Final = RecordKind("reports", str, _due_reports, _plain(ReportRow, "body"), _remove_reports)
