"""The stored files of versions, in the form that children need."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from lora_registry.keeping import store
from lora_registry.worker.children.files import Files, StoredFile


def stored_files(session: Session, version_ids: Sequence[int]) -> dict[int, Files]:
    """Return, by version id, the files whose bytes are in the store."""
    result: dict[int, Files] = {version_id: {} for version_id in version_ids}
    for file, blob in store.stored_files(session, version_ids):
        result[file.version_id][file.path] = StoredFile(file.digest, file.size, blob.life)
    return result
