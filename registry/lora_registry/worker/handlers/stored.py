"""The stored files of versions, in the form that children need."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from lora_registry.repositories import store
from lora_registry.worker.children.files import Files, StoredFile


def stored_files(session: Session, version_ids: Sequence[int]) -> dict[int, Files]:
    """Return, by version id, the files whose bytes are in the store."""
    return {
        version_id: {row.path: StoredFile(row.digest, row.size) for row in rows if row.stored}
        for version_id, rows in store.files_of(session, version_ids).items()
    }
