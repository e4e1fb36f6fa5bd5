"""Convert tag rows to wire structs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from lora_contract.wire.tags import TagEvent, TagView
from lora_registry.db.tables import Repository, Tag, TagMove, Version
from lora_registry.repositories import store
from lora_registry.repositories.views import ref
from lora_registry.runtime.clock import iso


def tag(repo: Repository, row: Tag, target: Version) -> TagView:
    return TagView(
        namespace=repo.namespace,
        name=repo.shown,
        tag=row.name,
        generation=row.generation,
        protected=row.protected,
        version=ref(repo, target),
        updated_at=iso(row.updated_at),
    )


def current(session: Session, repo: Repository, row: Tag) -> TagView:
    return tag(repo, row, store.versions_by_id(session, [row.version_id])[row.version_id])


def moves(session: Session, rows: Sequence[TagMove]) -> list[TagEvent]:
    ids = {side for row in rows for side in (row.from_version_id, row.to_version_id) if side is not None}
    found = store.versions_by_id(session, ids)

    def number(side: int | None) -> int | None:
        return None if side is None else found[side].number

    def digest(side: int | None) -> str | None:
        return None if side is None else found[side].digest

    return [
        TagEvent(
            tag=row.tag,
            generation=row.generation,
            from_number=number(row.from_version_id),
            to_number=number(row.to_version_id),
            from_digest=digest(row.from_version_id),
            to_digest=digest(row.to_version_id),
            reason=row.reason,
            author=row.author,
            at=iso(row.at),
        )
        for row in rows
    ]
