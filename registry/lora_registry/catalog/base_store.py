"""Named queries on fingerprints and aliases of bases."""

from __future__ import annotations

from sqlmodel import Session, col, select

from lora_registry.db.tables import BaseAlias, BaseFingerprintRow


def aliases(session: Session, repository_id: int) -> list[str]:
    query = select(BaseAlias.alias).where(BaseAlias.repository_id == repository_id).order_by(col(BaseAlias.alias))
    return list(session.exec(query))


def alias(session: Session, namespace: str, text: str) -> BaseAlias | None:
    return session.exec(select(BaseAlias).where(BaseAlias.namespace == namespace, BaseAlias.alias == text)).first()


def fingerprint(session: Session, version_id: int) -> BaseFingerprintRow | None:
    return session.get(BaseFingerprintRow, version_id)
