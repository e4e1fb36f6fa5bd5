"""Named queries on signatures. SQL only: no checks, permissions or transitions."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, select

from lora_registry.db.tables import VersionSignature


def signatures(
    session: Session,
    version_id: int,
    *,
    key_ids: Sequence[str] | None = None,
    signature_format: str | None = None,
    after: int = 0,
    limit: int | None = None,
) -> list[VersionSignature]:
    """List signatures in order of arrival. key_ids, signature_format: None: all. after: a row id."""
    query = select(VersionSignature).where(VersionSignature.version_id == version_id, col(VersionSignature.id) > after)
    if key_ids is not None:
        query = query.where(col(VersionSignature.key_id).in_(key_ids))
    if signature_format is not None:
        query = query.where(VersionSignature.format == signature_format)
    return list(session.exec(query.order_by(col(VersionSignature.id)).limit(limit)))
