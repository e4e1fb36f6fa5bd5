"""Named queries on the rows of blobs.

Whoever makes a reference to a blob locks its row in the same transaction, by `rescue` or `record`, and only then
inserts the reference: so a collector, which locks the row before it looks for references, sees either the lock or the
reference. A foreign key alone does not do this: its lock does not conflict with an UPDATE of the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sqlmodel import Session, col, select, update

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.keys import address, new_life
from lora_registry.db.dialect import database_now, insert_ignore
from lora_registry.db.tables import Blob, Orphan, Repository, Version, VersionBlob

KEPT: Final = ("ok", "damaged", "missing")
"""States of blobs whose object is, or should be, in the store."""


def blob(session: Session, digest: str) -> Blob | None:
    return session.get(Blob, digest)


def blobs(session: Session, digests: Iterable[str]) -> dict[str, Blob]:
    return {row.digest: row for row in session.exec(select(Blob).where(col(Blob.digest).in_(set(digests))))}


def addresses(session: Session, digests: Iterable[str]) -> dict[str, Digest]:
    """Return where the bytes of these digests are; those without a row are left out."""
    return {digest: place(row) for digest, row in blobs(session, digests).items()}


def place(row: Blob) -> Digest:
    return address(Digest.parse(row.digest), row.life)


def place_to_store(session: Session, digest: str) -> Digest:
    """Return the address at which bytes of this digest are to be stored: where they are or should be, or a new one."""
    row = blob(session, digest)
    if row is None:
        return Digest.parse(digest)
    return place(row) if row.state in KEPT else address(Digest.parse(digest), new_life())


def lock(session: Session, digests: Iterable[str]) -> dict[str, Blob]:
    """Lock rows until the end of the transaction, by digest, so that two callers cannot deadlock."""
    query = select(Blob).where(col(Blob.digest).in_(set(digests))).order_by(col(Blob.digest))
    query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    return {row.digest: row for row in session.exec(query)}


def rescue(session: Session, digests: Iterable[str]) -> dict[str, Blob]:
    """Lock the blobs that are `ok`, and take back their condemnation. The caller may then refer to them.

    Those that are not returned count as not stored.
    """
    found = {digest: row for digest, row in lock(session, digests).items() if row.state == "ok"}
    for row in found.values():
        if row.condemned_at is not None:
            row.condemned_at = None
            session.add(row)
    session.flush()
    return found


def declare(session: Session, sizes: Mapping[str, int]) -> None:
    """Insert rows, state `absent`, for digests that have none."""
    for digest, size in sorted(sizes.items()):
        values = {"digest": digest, "size": size, "created_at": 0, "state": "absent", "life": "", "verified_at": 0}
        session.execute(insert_ignore(session, Blob).values(**values))


def record(session: Session, stored: Mapping[Digest, int]) -> None:
    """Record blobs whose bytes were just written and verified, by address with sizes, and lock their rows.

    If the row names another object that is right, it stays, and the new object is left over. Raises RegistryError
    `unavailable` if a collector has removed, or is about to remove, an object at the same address: store it again.
    """
    lives = {str(where): (getattr(where, "life", ""), size) for where, size in stored.items()}
    known = blobs(session, lives)
    declare(session, {digest: size for digest, (_, size) in lives.items()})
    at = database_now(session)
    for digest, row in lock(session, lives).items():
        life, size = lives[digest]
        if digest in known and row.state not in KEPT and row.life == life:
            raise _removed(digest)
        if row.state == "ok" and row.life != life:
            row.condemned_at = None
            session.add(row)
            continue
        _adopt(session, digest, life)
        row.state, row.life, row.size, row.condemned_at, row.verified_at = "ok", life, size, None, at
        row.created_at = row.created_at or at
        session.add(row)
    session.flush()


def _adopt(session: Session, digest: str, life: str) -> None:
    """Forget that the object was seen without a row."""
    query = select(Orphan).where(Orphan.digest == digest, Orphan.life == life).with_for_update()
    orphan = session.exec(query).first()
    if orphan is None:
        return
    if orphan.doomed:
        raise _removed(digest)
    session.delete(orphan)


def _removed(digest: str) -> RegistryError:
    return RegistryError("unavailable", f"The bytes of {digest[:19]} were removed while they were stored.")


def set_state(session: Session, where: Digest, state: str) -> bool:
    """Set the state of a kept blob at this address. Return True if it was another one."""
    statement = (
        update(Blob)
        .where(
            col(Blob.digest) == str(where),
            col(Blob.life) == getattr(where, "life", ""),
            col(Blob.state).in_(KEPT),
            col(Blob.state) != state,
        )
        .values(state=state)
        .returning(col(Blob.digest))
    )
    return session.execute(statement).first() is not None


def set_verified(session: Session, where: Digest) -> None:
    session.execute(
        update(Blob)
        .where(col(Blob.digest) == str(where), col(Blob.life) == getattr(where, "life", ""))
        .values(verified_at=database_now(session))
    )


def kept_after(session: Session, digest: str, limit: int) -> list[Blob]:
    """List the blobs that should be in the store, by digest, after this one."""
    query = select(Blob).where(col(Blob.state).in_(KEPT), Blob.digest > digest).order_by(col(Blob.digest)).limit(limit)
    return list(session.exec(query))


def longest_unverified(session: Session, *, age: int, limit: int) -> list[Blob]:
    """List the blobs that should be in the store and were not verified for `age` microseconds, the oldest first."""
    before = database_now(session) - age
    query = select(Blob).where(col(Blob.state).in_(KEPT), col(Blob.verified_at) <= before)
    return list(session.exec(query.order_by(col(Blob.verified_at)).limit(limit)))


def users(session: Session, digest: str) -> list[tuple[Repository, Version]]:
    """Return the live versions that need a blob."""
    query = (
        select(Repository, Version)
        .join(Version, col(Version.repository_id) == col(Repository.id))
        .join(VersionBlob, col(VersionBlob.version_id) == col(Version.id))
        .where(VersionBlob.digest == digest, col(VersionBlob.stored).is_(True), col(Version.deleted_at).is_(None))
        .order_by(col(Repository.namespace), col(Version.id))
        .distinct()
    )
    return [(repo, version) for repo, version in session.exec(query)]


def stored_files(session: Session, version_ids: Iterable[int]) -> list[tuple[VersionBlob, Blob]]:
    """Return the files of versions whose bytes should be in the store, with their blobs."""
    query = (
        select(VersionBlob, Blob)
        .join(Blob, col(Blob.digest) == col(VersionBlob.digest))
        .where(col(VersionBlob.version_id).in_(set(version_ids)), col(VersionBlob.stored).is_(True))
        .order_by(col(VersionBlob.path))
    )
    return [(file, blob) for file, blob in session.exec(query)]


def unsound_file(session: Session, version_id: int) -> tuple[str, Blob] | None:
    """Return a file of a version whose stored bytes are known to be damaged or missing; None if there is none."""
    query = (
        select(VersionBlob.path, Blob)
        .join(Blob, col(Blob.digest) == col(VersionBlob.digest))
        .where(VersionBlob.version_id == version_id, col(VersionBlob.stored).is_(True), Blob.state != "ok")
        .order_by(VersionBlob.path)
        .limit(1)
    )
    return session.exec(query).first()
