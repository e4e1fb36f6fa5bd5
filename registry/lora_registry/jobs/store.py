"""Named queries on recipes, jobs and reports."""

from __future__ import annotations

import json
from typing import Any

from sqlmodel import Session, col, select

from lora_registry.db.scope import Scope
from lora_registry.db.tables import JobRow, RecipeRow, ReportRow


def recipe(session: Session, digest: str) -> RecipeRow | None:
    return session.get(RecipeRow, digest)


def recipe_body(session: Session, digest: str) -> dict[str, Any]:
    row = session.get(RecipeRow, digest)
    return {} if row is None else {**json.loads(row.body), "digest": digest}


def job(session: Session, job_id: str) -> JobRow | None:
    return session.get(JobRow, job_id)


def job_of_result(session: Session, version_id: int) -> JobRow | None:
    """The first job whose result is this version."""
    query = select(JobRow).where(JobRow.result_version_id == version_id).order_by(col(JobRow.created_at))
    return session.exec(query.limit(1)).first()


def jobs_by_prefix(session: Session, prefix: str, scope: Scope, *, limit: int) -> list[JobRow]:
    """List jobs whose ids begin with `prefix`, by id."""
    query = select(JobRow).where(col(JobRow.id).startswith(prefix, autoescape=True), scope.where(col(JobRow.namespace)))
    return list(session.exec(query.order_by(col(JobRow.id)).limit(limit)))


def jobs(
    session: Session,
    scope: Scope,
    *,
    kind: str | None,
    exclude_kind: str | None,
    before: tuple[int, str] | None,
    limit: int,
) -> list[JobRow]:
    """List jobs, newest first."""
    query = select(JobRow).order_by(col(JobRow.created_at).desc(), col(JobRow.id).desc()).limit(limit)
    query = query.where(scope.where(col(JobRow.namespace)))
    if kind is not None:
        query = query.where(JobRow.kind == kind)
    if exclude_kind is not None:
        query = query.where(JobRow.kind != exclude_kind)
    if before is not None:
        at, job_id = before
        query = query.where(
            (col(JobRow.created_at) < at) | ((col(JobRow.created_at) == at) & (col(JobRow.id) < job_id))
        )
    return list(session.exec(query))


def reports(session: Session, version_id: int) -> list[ReportRow]:
    query = select(ReportRow).where(ReportRow.version_id == version_id).order_by(col(ReportRow.created_at).desc())
    return list(session.exec(query))


def report(session: Session, report_id: str) -> ReportRow | None:
    return session.get(ReportRow, report_id)
