"""What a namespace holds, and its quota: counted in the transaction that commits or deletes a version."""

from __future__ import annotations

from sqlmodel import Session, col, func, or_, select, update

from lora_contract.errors import RegistryError
from lora_registry.db.tables import Namespace, VersionBlob


def add(session: Session, namespace: str, *, size: int, versions: int = 1) -> None:
    """Count new versions and their stored bytes. Raises `quota` if the namespace has no room for them.

    Locks the row of the namespace until the end of the transaction, so that concurrent commits cannot exceed it.
    """
    room = (
        or_(col(Namespace.max_bytes).is_(None), col(Namespace.bytes) + size <= col(Namespace.max_bytes)),
        or_(col(Namespace.max_versions).is_(None), col(Namespace.versions) + versions <= col(Namespace.max_versions)),
    )
    statement = (
        update(Namespace)
        .where(col(Namespace.name) == namespace, *room)
        .values(bytes=col(Namespace.bytes) + size, versions=col(Namespace.versions) + versions)
        .returning(col(Namespace.name))
    )
    if session.connection().execute(statement).first() is None:
        raise _exceeded(session, namespace, size)


def remove(session: Session, namespace: str, *, size: int, versions: int) -> None:
    """Count deleted versions."""
    less = {"bytes": col(Namespace.bytes) - size, "versions": col(Namespace.versions) - versions}
    session.connection().execute(update(Namespace).where(col(Namespace.name) == namespace).values(**less))


def check(session: Session, namespace: str, *, size: int, versions: int = 1) -> None:
    """Raise `quota` if a version of `size` bytes would not be accepted now: before its bytes are sent.

    versions: 0 for bytes of a version that is there.
    """
    row = session.get(Namespace, namespace)
    if row is None:
        return
    if (row.max_bytes is not None and row.bytes + size > row.max_bytes) or (
        row.max_versions is not None and row.versions + versions > row.max_versions
    ):
        raise _exceeded(session, namespace, size)


def stored_bytes(session: Session, version_ids: list[int]) -> int:
    """Return the bytes of the stored files of versions."""
    query = select(func.coalesce(func.sum(VersionBlob.size), 0)).where(
        col(VersionBlob.version_id).in_(version_ids), col(VersionBlob.stored).is_(True)
    )
    return int(session.exec(query).one())


def _exceeded(session: Session, namespace: str, size: int) -> RegistryError:
    row = session.get(Namespace, namespace, populate_existing=True)
    assert row is not None
    over = row.max_bytes is not None and row.bytes + size > row.max_bytes
    detail = (
        f"{namespace} holds {row.bytes} of at most {row.max_bytes} bytes; the version has {size}."
        if over
        else f"{namespace} holds {row.versions} of at most {row.max_versions} versions."
    )
    return RegistryError("quota", detail, used=row.bytes if over else row.versions)
