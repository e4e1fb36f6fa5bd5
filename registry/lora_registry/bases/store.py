"""Named queries on fingerprints and aliases of bases."""

from __future__ import annotations

from collections.abc import Iterable

from sqlmodel import Session, col, delete, select

from lora_registry.db.aliases import is_alias
from lora_registry.db.dialect import insert_ignore
from lora_registry.db.scope import Scope
from lora_registry.db.tables import BaseAlias, BaseFingerprintRow, Repository, WeightSource


def aliases(session: Session, repository_id: int) -> list[str]:
    query = select(BaseAlias.alias).where(BaseAlias.repository_id == repository_id).order_by(col(BaseAlias.alias))
    return list(session.exec(query))


def alias(session: Session, namespace: str, text: str) -> BaseAlias | None:
    """Return an alias in any case of letters, the given one first."""
    query = select(BaseAlias).where(BaseAlias.namespace == namespace, is_alias(text))
    return session.exec(query.order_by(col(BaseAlias.alias) != text).limit(1)).first()


def rendered_templates(session: Session, version_ids: Iterable[int]) -> dict[int, str]:
    """Map version ids to digests of the rendered chat template, for bases whose template was rendered."""
    query = select(BaseFingerprintRow.version_id, BaseFingerprintRow.rendered_template).where(
        col(BaseFingerprintRow.version_id).in_(set(version_ids)), col(BaseFingerprintRow.rendered_template).is_not(None)
    )
    return {version_id: rendered for version_id, rendered in session.exec(query) if rendered}


def by_alias(session: Session, text: str, scope: Scope, *, limit: int) -> list[Repository]:
    """List the live bases with this alias, in any case of letters, of which something may be read, by namespace."""
    query = (
        select(Repository)
        .join(BaseAlias, col(BaseAlias.repository_id) == col(Repository.id))
        .where(is_alias(text), col(Repository.deleted_at).is_(None), scope.repositories())
        .order_by(col(Repository.namespace), col(Repository.name))
        .limit(limit)
    )
    return list(session.exec(query))


def fingerprint(session: Session, version_id: int) -> BaseFingerprintRow | None:
    return session.get(BaseFingerprintRow, version_id)


def add_alias(session: Session, namespace: str, text: str, repository_id: int) -> BaseAlias:
    """Insert an alias unless another base has it; return its row, which may belong to that one."""
    known = alias(session, namespace, text)
    if known is not None and known.repository_id != repository_id:
        return known
    values = {"namespace": namespace, "alias": text, "repository_id": repository_id}
    session.execute(insert_ignore(session, BaseAlias).values(**values))
    found = alias(session, namespace, text)
    assert found is not None
    return found


def delete_aliases(session: Session, repository_id: int) -> None:
    session.exec(delete(BaseAlias).where(col(BaseAlias.repository_id) == repository_id))


def weight_source(session: Session, version_id: int) -> WeightSource | None:
    return session.get(WeightSource, version_id)


def weight_sources(session: Session, version_ids: Iterable[int]) -> dict[int, WeightSource]:
    """Return the sources of versions, by version id, for those that have one."""
    wanted = set(version_ids)
    if not wanted:
        return {}
    query = select(WeightSource).where(col(WeightSource.version_id).in_(wanted))
    return {row.version_id: row for row in session.exec(query)}


def set_weight_source(session: Session, source: WeightSource) -> None:
    """Insert a source, or replace the version's present one."""
    session.merge(source)
    session.flush()
