"""The report of a job and its event, in the job's transaction."""

from __future__ import annotations

import msgspec
from sqlmodel import Session

from lora_registry.auth.principals import WORKER
from lora_registry.db.tables import ReportRow
from lora_registry.events import audit
from lora_registry.repositories import store as catalog
from lora_registry.runtime.clock import now


class ReportResult(msgspec.Struct, frozen=True):
    """Result of a job that stores a report. report: its id."""

    report: str
    passed: bool


def add(session: Session, job_id: str, kind: str, version_id: int, *, passed: bool, body: str) -> ReportResult:
    """Insert a report. body: JSON. The report of a job that ran before, and was removed since, stays as it was."""
    known = session.get(ReportRow, job_id)
    if known is not None:
        return ReportResult(job_id, known.passed)
    version = catalog.versions_by_id(session, [version_id])[version_id]
    repo = catalog.repositories_by_id(session, [version.repository_id])[version.repository_id]
    session.add(ReportRow(id=job_id, kind=kind, version_id=version_id, passed=passed, body=body, created_at=now()))
    audit.record(
        session,
        "report-made",
        principal=WORKER,
        namespace=repo.namespace,
        subject=f"{repo.label}:v{version.number}",
        report=job_id,
        passed=passed,
    )
    session.flush()
    return ReportResult(job_id, passed)
