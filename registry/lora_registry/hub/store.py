"""Named queries on what Hub clients staged and on their uploads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlmodel import Session, col, delete, func, select

from lora_registry.db.dialect import insert_ignore
from lora_registry.db.tables import (
    BaseAlias,
    Repository,
    StagedFile,
    Staging,
    UploadFile,
    UploadSessionRow,
    Version,
)
from lora_registry.repositories.paths import RepositoryPath

UPLOAD_KIND = "hub"
"""The kind of upload sessions of Hub clients."""


def staging(session: Session, path: RepositoryPath, branch: str, at: int, *, lock: bool = False) -> Staging | None:
    """Return what is staged on a branch and has not expired at `at`."""
    query = select(Staging).where(
        Staging.namespace == path.namespace,
        Staging.name == path.name,
        Staging.branch == branch,
        col(Staging.expires_at) >= at,
    )
    return session.exec(query.with_for_update() if lock else query).first()


def branches(session: Session, path: RepositoryPath, at: int) -> list[Staging]:
    query = select(Staging).where(
        Staging.namespace == path.namespace, Staging.name == path.name, col(Staging.expires_at) >= at
    )
    return list(session.exec(query.order_by(col(Staging.branch))))


def staged_files(session: Session, staging_id: str) -> list[StagedFile]:
    query = select(StagedFile).where(StagedFile.staging_id == staging_id).order_by(col(StagedFile.path))
    return list(session.exec(query))


def staged(session: Session, path: RepositoryPath, at: int) -> list[StagedFile]:
    """List the files staged on all branches of a repository."""
    query = select(StagedFile).join(Staging, col(Staging.id) == col(StagedFile.staging_id))
    query = query.where(Staging.namespace == path.namespace, Staging.name == path.name, col(Staging.expires_at) >= at)
    return list(session.exec(query))


def insert_staging(session: Session, row: Staging) -> bool:
    """Insert a row, in place of an expired one. Return False if another request did so first."""
    old = select(Staging.id).where(
        Staging.namespace == row.namespace,
        Staging.name == row.name,
        Staging.branch == row.branch,
        col(Staging.expires_at) < row.created_at,
    )
    remove(session, list(session.exec(old)))
    values = row.model_dump()
    statement = insert_ignore(session, Staging).values(**values).returning(col(Staging.id))
    return session.connection().execute(statement).first() is not None


def replace_files(session: Session, staging_id: str, files: Mapping[str, tuple[str | None, int]]) -> None:
    """Set the staged files: digest and size by path."""
    session.exec(delete(StagedFile).where(col(StagedFile.staging_id) == staging_id))
    for path, (digest, size) in sorted(files.items()):
        session.add(StagedFile(staging_id=staging_id, path=path, digest=digest, size=size))
    session.flush()


def remove(session: Session, ids: Iterable[str]) -> int:
    found = list(ids)
    session.exec(delete(StagedFile).where(col(StagedFile.staging_id).in_(found)))
    session.exec(delete(Staging).where(col(Staging.id).in_(found)))
    return len(found)


def expired(session: Session, at: int, limit: int = 100) -> list[str]:
    return list(session.exec(select(Staging.id).where(col(Staging.expires_at) < at).limit(limit)))


def staged_bytes(session: Session, namespace: str, at: int) -> int:
    """Return the bytes of the staged files of a namespace."""
    query = (
        select(func.coalesce(func.sum(StagedFile.size), 0))
        .join(Staging, col(Staging.id) == col(StagedFile.staging_id))
        .where(Staging.namespace == namespace, col(Staging.expires_at) >= at, col(StagedFile.digest).is_not(None))
    )
    return int(session.exec(query).one())


def count_staging(session: Session, namespace: str, at: int) -> int:
    query = select(func.count()).select_from(Staging)
    return session.exec(query.where(Staging.namespace == namespace, col(Staging.expires_at) >= at)).one()


def uploads(session: Session, path: RepositoryPath, author: str, at: int) -> list[UploadFile]:
    """List what an author announced for a repository as a Hub client, in sessions that have not expired at `at`."""
    query = (
        select(UploadFile)
        .join(UploadSessionRow, col(UploadSessionRow.id) == col(UploadFile.session_id))
        .where(
            UploadSessionRow.namespace == path.namespace,
            UploadSessionRow.name == path.name,
            UploadSessionRow.kind == UPLOAD_KIND,
            UploadSessionRow.author == author,
            col(UploadSessionRow.expires_at) >= at,
        )
        .order_by(col(UploadSessionRow.created_at))
    )
    return list(session.exec(query))


def by_capability(session: Session, digest: str, at: int) -> UploadSessionRow | None:
    query = select(UploadSessionRow).where(
        UploadSessionRow.capability == digest, col(UploadSessionRow.expires_at) >= at
    )
    return session.exec(query).first()


def base_names(session: Session, version_ids: Iterable[int]) -> dict[int, list[str]]:
    """Return what adapters may call these base versions: `namespace/name`, then aliases."""
    shown = func.coalesce(col(Repository.spelling), col(Repository.name))
    query = (
        select(Version.id, Repository.namespace, shown, BaseAlias.alias)
        .join(Repository, col(Repository.id) == col(Version.repository_id))
        .join(BaseAlias, col(BaseAlias.repository_id) == col(Repository.id), isouter=True)
        .where(col(Version.id).in_(set(version_ids)))
    )
    result: dict[int, list[str]] = {}
    for version_id, namespace, name, alias in session.exec(query):
        names = result.setdefault(version_id, [f"{namespace}/{name}"])
        if alias is not None and alias not in names:
            names.append(alias)
    return {key: [names[0], *sorted(names[1:])] for key, names in result.items()}
