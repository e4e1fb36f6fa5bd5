"""Named queries on policies and on the decisions under them. SQL only: no checks, permissions or transitions."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func
from sqlmodel import Session, col, select

from lora_contract.roles import ALL
from lora_registry.db.scope import Scope
from lora_registry.db.tables import DecisionRow, PolicyRow, TagMove

_LOCK_KEY: Final = 7305619


def lock_policies(session: Session, *, exclusive: bool = False) -> None:
    """Lock policies until the end of the transaction: shared to move a tag, exclusive to change a policy.

    Otherwise a tag could move under the old policy after the new one was acknowledged. On SQLite a write transaction
    is exclusive anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        lock = func.pg_advisory_xact_lock if exclusive else func.pg_advisory_xact_lock_shared
        session.execute(select(lock(_LOCK_KEY)))


def current_policies(session: Session, scope: Scope) -> list[PolicyRow]:
    """Return the newest row of each pattern, including removed policies, by pattern.

    Those that span several namespaces are always among them.
    """
    namespace = col(PolicyRow.namespace)
    newest = select(PolicyRow.pattern, func.max(PolicyRow.number)).group_by(col(PolicyRow.pattern))
    found = newest.where(scope.where(namespace) | (namespace == ALL)).subquery()
    query = select(PolicyRow).join(
        found, (found.c[0] == col(PolicyRow.pattern)) & (found.c[1] == col(PolicyRow.number))
    )
    return list(session.exec(query.order_by(col(PolicyRow.pattern))))


def policy_history(session: Session, pattern: str) -> list[PolicyRow]:
    """Return all rows of a pattern, newest first."""
    query = select(PolicyRow).where(PolicyRow.pattern == pattern).order_by(col(PolicyRow.number).desc())
    return list(session.exec(query))


def allowing_decisions(
    session: Session, *, version_id: int, tag: str, policy_digest: str, holder_version_id: int | None, limit: int = 100
) -> list[DecisionRow]:
    """Return the decisions that allowed a version under this policy, compared with this target, newest first."""
    query = (
        select(DecisionRow)
        .where(
            DecisionRow.version_id == version_id,
            DecisionRow.tag == tag,
            DecisionRow.policy_digest == policy_digest,
            DecisionRow.holder_version_id == holder_version_id,
            col(DecisionRow.allowed).is_(True),
        )
        .order_by(col(DecisionRow.id).desc())
        .limit(limit)
    )
    return list(session.exec(query))


def was_promoted(session: Session, repository_id: int, tag: str, version_id: int) -> bool:
    """Return whether the tag was once moved to this version because a policy allowed it."""
    query = (
        select(TagMove.id)
        .join(DecisionRow, col(DecisionRow.id) == col(TagMove.decision_id))
        .where(
            TagMove.repository_id == repository_id,
            TagMove.tag == tag,
            TagMove.to_version_id == version_id,
            col(DecisionRow.allowed).is_(True),
        )
        .limit(1)
    )
    return session.exec(query).first() is not None
