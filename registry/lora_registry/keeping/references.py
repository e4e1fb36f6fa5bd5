"""What keeps a blob: live versions, what open upload sessions announced, and what Hub clients staged. SQL of the
collector."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, exists, or_
from sqlmodel import Session, col, select, update

from lora_registry.db.dialect import database_now
from lora_registry.db.tables import (
    Blob,
    Repository,
    StagedFile,
    Staging,
    UploadFile,
    UploadSessionRow,
    Version,
    VersionBlob,
)
from lora_registry.keeping.store import KEPT


def is_referenced(at: int | None) -> ColumnElement[bool]:
    """Return the condition on a blob's row. at: the database's time, by which sessions and staged files expire; None:
    ignore them.

    Recipes and lineage of live versions name versions, which cannot be deleted as long as a live one derives from
    them; running jobs read live versions, and what they have written is not a blob before they commit.
    """
    by_version = exists().where(
        col(VersionBlob.digest) == col(Blob.digest),
        col(VersionBlob.stored).is_(True),
        col(Version.id) == col(VersionBlob.version_id),
        col(Version.deleted_at).is_(None),
    )
    if at is None:
        return by_version
    by_session = exists().where(
        col(UploadFile.digest) == col(Blob.digest),
        col(UploadSessionRow.id) == col(UploadFile.session_id),
        col(UploadSessionRow.expires_at) >= at,
    )
    by_staging = exists().where(
        col(StagedFile.digest) == col(Blob.digest),
        col(Staging.id) == col(StagedFile.staging_id),
        col(Staging.expires_at) >= at,
    )
    return or_(by_version, by_session, by_staging)


def changed_after(session: Session, digest: str, limit: int, *, condemned: bool) -> list[str]:
    """List digests after this one whose condemnation is to be set (condemned False: they have none) or taken back."""
    found = is_referenced(database_now(session))
    query = select(Blob.digest).where(col(Blob.state).in_(KEPT), Blob.digest > digest)
    if condemned:
        query = query.where(col(Blob.condemned_at).is_not(None), found)
    else:
        query = query.where(col(Blob.condemned_at).is_(None), ~found)
    return list(session.exec(query.order_by(col(Blob.digest)).limit(limit)))


def lock_free(session: Session, digests: Iterable[str], *, wait: bool = False) -> dict[str, Blob]:
    """Lock these blobs, except those that somebody else has locked; wait: for those too.

    A collector that waited for a push while it holds locks could deadlock with it.
    """
    query = select(Blob).where(col(Blob.digest).in_(list(digests)), col(Blob.state).in_(KEPT))
    query = query.order_by(col(Blob.digest)).with_for_update(skip_locked=not wait)
    return {row.digest: row for row in session.exec(query.execution_options(populate_existing=True))}


def condemn(session: Session, digests: Iterable[str]) -> int:
    """Note that nothing refers to these blobs. Return how many were condemned now."""
    locked = lock_free(session, digests)
    found = referenced(session, locked)
    at = database_now(session)
    doomed = [row for digest, row in locked.items() if digest not in found and row.condemned_at is None]
    for row in doomed:
        row.condemned_at = at
        session.add(row)
    return len(doomed)


def pardon(session: Session, digests: Iterable[str]) -> None:
    """Take back the condemnation of blobs that something refers to."""
    locked = lock_free(session, digests)
    for digest in referenced(session, locked):
        locked[digest].condemned_at = None
        session.add(locked[digest])


def due(session: Session, *, grace: int, after: str, limit: int) -> list[Blob]:
    """List blobs that were condemned more than `grace` microseconds ago, by digest."""
    limit_at = database_now(session) - grace
    query = select(Blob).where(col(Blob.state).in_(KEPT), col(Blob.condemned_at) <= limit_at, Blob.digest > after)
    return list(session.exec(query.order_by(col(Blob.digest)).limit(limit)))


def referenced(session: Session, digests: Iterable[str], *, sessions: bool = True) -> set[str]:
    """Return those of these digests that something refers to. sessions: upload sessions count."""
    at = database_now(session) if sessions else None
    return set(session.exec(select(Blob.digest).where(col(Blob.digest).in_(list(digests)), is_referenced(at))))


def unreferenced(session: Session, digests: Iterable[str], *, purge: bool = False) -> list[Blob]:
    """Lock blobs; return those that nothing refers to, and take back the condemnation of the others.

    Two statements: whoever was about to refer to one has locked it, or has committed, which only a statement that
    begins after the lock is sure to see (in READ COMMITTED). purge: wait for the locks of others, and ignore what
    upload sessions announced.
    """
    locked = lock_free(session, digests, wait=purge)
    found = referenced(session, locked, sessions=not purge)
    for digest in found:
        locked[digest].condemned_at = None
        session.add(locked[digest])
    return [row for digest, row in locked.items() if digest not in found]


def deleting(session: Session, limit: int) -> list[Blob]:
    return list(session.exec(select(Blob).where(Blob.state == "deleting").limit(limit)))


def set_absent(session: Session, digest: str, life: str) -> bool:
    """Note that the object was removed, unless the content was stored again meanwhile, in another life."""
    statement = (
        update(Blob)
        .where(col(Blob.digest) == digest, col(Blob.life) == life, col(Blob.state) == "deleting")
        .values(state="absent", condemned_at=None)
        .returning(col(Blob.digest))
    )
    return session.execute(statement).first() is not None


def namespaces(session: Session, digests: Iterable[str]) -> dict[str, list[str]]:
    """Return the digests by the namespaces whose versions, deleted ones too, have them."""
    query = (
        select(Repository.namespace, VersionBlob.digest)
        .join(Version, col(Version.repository_id) == col(Repository.id))
        .join(VersionBlob, col(VersionBlob.version_id) == col(Version.id))
        .where(col(VersionBlob.digest).in_(list(digests)))
        .distinct()
        .order_by(Repository.namespace, VersionBlob.digest)
    )
    result: dict[str, list[str]] = {}
    for namespace, digest in session.exec(query):
        result.setdefault(namespace, []).append(digest)
    return result
