"""The quota of jobs of a namespace: how many are queued or running at once.

The engine knows which jobs have not ended, so none are counted in a column that could drift: whoever adds a job locks
the row of the namespace, and counts. Inspections do not count: each is part of a push, which has quotas of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlmodel import Session, col, func, or_, select

from lora_contract.errors import RegistryError
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import JobRow, Namespace
from lora_registry.jobs.engine.ended import EngineRows
from lora_registry.jobs.specs import INSPECT

RESERVED: Final = 60_000_000
"""In microseconds: the longest time between the admission of a retry and its transaction in the engine."""


def admit(session: Session, engine: EngineRows, namespace: str, job_id: str) -> None:
    """Admit a new job to the caller's transaction. Raises `quota`. A job that is known already is no new one."""
    limit = _locked_limit(session, namespace)
    if limit is not None and session.get(JobRow, job_id) is None:
        _require_room(namespace, limit, counts(session, engine, [namespace])[namespace])


def reserve(session: Session, engine: EngineRows, job_id: str) -> None:
    """Admit the retry of a job, which reaches the engine in a transaction of its own. Raises `quota`."""
    row = session.get(JobRow, job_id)
    if row is None or row.kind == INSPECT.name:
        return
    limit = _locked_limit(session, row.namespace)
    if limit is not None:
        _require_room(row.namespace, limit, counts(session, engine, [row.namespace], but=job_id)[row.namespace])
        row.reserved_until = database_now(session) + RESERVED
        session.add(row)


def release(session: Session, job_id: str) -> None:
    """End a reservation: the engine counts the job now, or refused to restart it."""
    row = session.get(JobRow, job_id)
    if row is not None and row.reserved_until is not None:
        row.reserved_until = None
        session.add(row)


def counts(
    session: Session, engine: EngineRows, namespaces: Collection[str], *, but: str | None = None
) -> dict[str, int]:
    """Count the queued and running jobs of namespaces. but: a job that is left out."""
    counted = or_(col(JobRow.id).in_(engine.active()), col(JobRow.reserved_until) > database_now(session))
    query = (
        select(JobRow.namespace, func.count())
        .where(col(JobRow.namespace).in_(namespaces), JobRow.kind != INSPECT.name, counted)
        .group_by(JobRow.namespace)
    )
    if but is not None:
        query = query.where(JobRow.id != but)
    return dict.fromkeys(namespaces, 0) | {name: int(number) for name, number in session.exec(query)}


def _locked_limit(session: Session, namespace: str) -> int | None:
    query = select(Namespace.max_jobs).where(Namespace.name == namespace, col(Namespace.max_jobs).is_not(None))
    return session.exec(query.with_for_update()).first()


def _require_room(namespace: str, limit: int, used: int) -> None:
    if used >= limit:
        raise RegistryError(
            "quota",
            f"{namespace} has {used} of at most {limit} jobs queued or running at once.",
            hint="Wait until one has ended, cancel one with `lora-reg job cancel`, or ask an administrator for a "
            "larger quota.",
            used=used,
            limit=limit,
        )
