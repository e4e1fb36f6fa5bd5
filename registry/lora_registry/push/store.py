"""Named queries on upload sessions and on blobs."""

from __future__ import annotations

from collections.abc import Mapping

from sqlmodel import Session, col, delete, select, update

from lora_registry.db.tables import UploadFile, UploadSessionRow
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import new_id


def session_row(session: Session, upload_id: str) -> UploadSessionRow | None:
    return session.get(UploadSessionRow, upload_id)


def add(
    session: Session,
    path: RepositoryPath,
    kind: str,
    author: str,
    *,
    at: int,
    seconds: int,
    capability: str | None = None,
) -> str:
    """Insert a session of `author` for a version of `kind`, which expires `seconds` after `at`. Return its id.

    capability: see `UploadSessionRow`.
    """
    row = UploadSessionRow(
        id=new_id(),
        namespace=path.namespace,
        name=path.name,
        kind=kind,
        author=author,
        created_at=at,
        expires_at=at + seconds * 1_000_000,
        capability=capability,
    )
    session.add(row)
    session.flush()
    return row.id


def unfinished(
    session: Session, repository: tuple[str, str, str], author: str, sizes: Mapping[str, int], at: int
) -> str | None:
    """Return the author's newest open session for exactly these blobs, by digest and size; None if there is none.

    repository: namespace, name and kind.
    """
    namespace, name, kind = repository
    query = (
        select(UploadSessionRow.id)
        .where(
            col(UploadSessionRow.author) == author,
            col(UploadSessionRow.namespace) == namespace,
            col(UploadSessionRow.name) == name,
            col(UploadSessionRow.kind) == kind,
            col(UploadSessionRow.expires_at) > at,
        )
        .order_by(col(UploadSessionRow.created_at).desc())
        .limit(10)
    )
    for upload_id in session.exec(query):
        if {file.digest: file.size for file in files(session, upload_id)} == sizes:
            return upload_id
    return None


def files(session: Session, upload_id: str) -> list[UploadFile]:
    query = select(UploadFile).where(UploadFile.session_id == upload_id).order_by(col(UploadFile.digest))
    return list(session.exec(query))


def file(session: Session, upload_id: str, digest: str) -> UploadFile | None:
    return session.get(UploadFile, (upload_id, digest))


def mark_stored(session: Session, upload_id: str, digest: str, *, stored: bool = True) -> None:
    session.exec(
        update(UploadFile)
        .where(col(UploadFile.session_id) == upload_id, col(UploadFile.digest) == digest)
        .values(stored=stored)
    )


def remove(session: Session, upload_id: str) -> None:
    session.exec(delete(UploadFile).where(col(UploadFile.session_id) == upload_id))
    session.exec(delete(UploadSessionRow).where(col(UploadSessionRow.id) == upload_id))


def expired(session: Session, at: int, limit: int = 100) -> list[str]:
    query = select(UploadSessionRow.id).where(col(UploadSessionRow.expires_at) < at).limit(limit)
    return list(session.exec(query))
