"""Named queries on decisions and approvals. SQL only: no checks, permissions or transitions."""

from __future__ import annotations

from sqlmodel import Session, col, select

from lora_registry.db.tables import Approval, DecisionRow


def newest_decision(session: Session, version_id: int, tag: str) -> DecisionRow | None:
    query = (
        select(DecisionRow)
        .where(DecisionRow.version_id == version_id, DecisionRow.tag == tag)
        .order_by(col(DecisionRow.id).desc())
        .limit(1)
    )
    return session.exec(query).first()


def approvals(session: Session, version_id: int, tag: str) -> list[tuple[str, str]]:
    """Return name and role of each approver."""
    query = select(Approval).where(Approval.version_id == version_id, Approval.tag == tag)
    return [(row.author, row.role) for row in session.exec(query.order_by(col(Approval.id)))]


def approval(session: Session, version_id: int, tag: str, author: str) -> Approval | None:
    """Return the newest approval by one author."""
    query = select(Approval).where(Approval.version_id == version_id, Approval.tag == tag, Approval.author == author)
    return session.exec(query.order_by(col(Approval.id).desc()).limit(1)).first()
