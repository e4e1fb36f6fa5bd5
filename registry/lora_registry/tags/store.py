"""Named queries on tags and their history. SQL only: no checks, permissions or transitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import func
from sqlmodel import Session, col, select, update

from lora_registry.db.tables import Tag, TagMove, Version


def tag(session: Session, repository_id: int, name: str) -> Tag | None:
    return session.exec(select(Tag).where(Tag.repository_id == repository_id, Tag.name == name)).first()


def tags(session: Session, repository_ids: Sequence[int]) -> list[Tag]:
    query = (
        select(Tag).where(col(Tag.repository_id).in_(repository_ids)).order_by(col(Tag.repository_id), col(Tag.name))
    )
    return list(session.exec(query))


def tags_of_versions(session: Session, version_ids: Iterable[int]) -> dict[int, list[str]]:
    result: dict[int, list[str]] = {}
    for row in session.exec(select(Tag).where(col(Tag.version_id).in_(set(version_ids))).order_by(col(Tag.name))):
        result.setdefault(row.version_id, []).append(row.name)
    return result


def swap_tag(session: Session, row: Tag, *, version_id: int, at: int) -> bool:
    """Move a tag if its generation is still that of `row`: a compare-and-swap in one statement."""
    statement = (
        update(Tag)
        .where(
            col(Tag.repository_id) == row.repository_id,
            col(Tag.name) == row.name,
            col(Tag.generation) == row.generation,
        )
        .values(version_id=version_id, generation=row.generation + 1, updated_at=at)
        .execution_options(synchronize_session=False)
    )
    return session.exec(statement).rowcount == 1


def last_generation(session: Session, repository_id: int, name: str) -> int:
    query = select(func.max(TagMove.generation)).where(TagMove.repository_id == repository_id, TagMove.tag == name)
    return session.exec(query).one() or 0


def ever_pointed_to(session: Session, repository_id: int, name: str, version_id: int) -> bool:
    query = select(TagMove.id).where(
        TagMove.repository_id == repository_id, TagMove.tag == name, TagMove.to_version_id == version_id
    )
    return session.exec(query.limit(1)).first() is not None


def previous_target(session: Session, repository_id: int, name: str, current: int) -> int | None:
    """Return the last target before `current` that is not deleted; None if there is none."""
    query = (
        select(TagMove.to_version_id)
        .join(Version, col(Version.id) == col(TagMove.to_version_id))
        .where(
            TagMove.repository_id == repository_id,
            TagMove.tag == name,
            col(TagMove.to_version_id) != current,
            col(Version.deleted_at).is_(None),
        )
        .order_by(col(TagMove.generation).desc())
        .limit(1)
    )
    return session.exec(query).first()


def moves(session: Session, repository_id: int, *, name: str | None, before: int | None, limit: int) -> list[TagMove]:
    query = select(TagMove).where(TagMove.repository_id == repository_id)
    if name is not None:
        query = query.where(TagMove.tag == name)
    if before is not None:
        query = query.where(col(TagMove.id) < before)
    return list(session.exec(query.order_by(col(TagMove.id).desc()).limit(limit)))
