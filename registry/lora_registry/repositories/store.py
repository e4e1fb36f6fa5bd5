"""Named queries on repositories, versions, tags and edges. SQL only: no checks, permissions or transitions."""

from __future__ import annotations

from collections.abc import Iterable, Set

from sqlalchemy import ColumnElement, func, true
from sqlmodel import Session, col, select

from lora_registry.db.aliases import is_alias
from lora_registry.db.dialect import insert_ignore
from lora_registry.db.scope import Scope
from lora_registry.db.tables import BaseAlias, Blob, Namespace, Repository, Version, VersionBlob, VersionEdge
from lora_registry.repositories.paths import RepositoryPath


def repository(session: Session, path: RepositoryPath, *, lock: bool = False) -> Repository | None:
    """Return a repository, even if deleted.

    lock: lock its row until the end of the transaction. Every change inside a repository takes this lock first, so
    version numbers have no gaps and histories no forks.
    """
    query = select(Repository).where(Repository.namespace == path.namespace, Repository.name == path.name)
    return session.exec(query.with_for_update() if lock else query).first()


def repositories_by_id(session: Session, ids: Iterable[int]) -> dict[int, Repository]:
    rows = session.exec(select(Repository).where(col(Repository.id).in_(set(ids))))
    return {row.id: row for row in rows}


def list_repositories(
    session: Session,
    scope: Scope,
    *,
    namespace: str | None,
    kind: str | None,
    like: str | None,
    alias: str | None,
    after: tuple[str, str] | None,
    limit: int,
) -> list[Repository]:
    """List live repositories by namespace and name. like: an escaped LIKE pattern over `namespace/name`. alias: of
    bases, in any case of letters."""
    query = select(Repository).where(col(Repository.deleted_at).is_(None), scope.repositories())
    if namespace is not None:
        query = query.where(Repository.namespace == namespace)
    if kind is not None:
        query = query.where(Repository.kind == kind)
    if like is not None:
        full = col(Repository.namespace) + "/" + col(Repository.name)
        query = query.where(full.like(like, escape="\\"))
    if alias is not None:
        named = select(BaseAlias.repository_id).where(is_alias(alias))
        query = query.where(col(Repository.id).in_(named))
    if after is not None:
        query = query.where(
            (col(Repository.namespace) > after[0])
            | ((col(Repository.namespace) == after[0]) & (col(Repository.name) > after[1]))
        )
    query = query.order_by(col(Repository.namespace), col(Repository.name)).limit(limit)
    return list(session.exec(query))


def count_live_versions(session: Session, repository_id: int, only: Set[int] | None = None) -> int:
    """only: here and below, ids of the versions to look at; None: all."""
    query = (
        select(func.count())
        .select_from(Version)
        .where(Version.repository_id == repository_id, col(Version.deleted_at).is_(None), _among(only))
    )
    return session.exec(query).one()


def newest(session: Session, repository_id: int, only: Set[int] | None = None) -> Version | None:
    """Return the newest version that is neither deleted nor yanked; if all are yanked, the newest of those."""
    query = (
        select(Version)
        .where(Version.repository_id == repository_id, col(Version.deleted_at).is_(None), _among(only))
        .order_by(col(Version.yanked_reason).is_not(None), col(Version.number).desc())
        .limit(1)
    )
    return session.exec(query).first()


def version_by_number(session: Session, repository_id: int, number: int) -> Version | None:
    if number > 2**31 - 1:
        return None
    return session.exec(select(Version).where(Version.repository_id == repository_id, Version.number == number)).first()


def version_by_digest(session: Session, repository_id: int, digest: str) -> Version | None:
    """Return the live version with this content, or else a deleted one."""
    query = (
        select(Version)
        .where(Version.repository_id == repository_id, Version.digest == digest)
        .order_by(col(Version.deleted_at).is_not(None), col(Version.number).desc())
        .limit(1)
    )
    return session.exec(query).first()


def version_by_commit(session: Session, repository_id: int, commit: str) -> Version | None:
    query = (
        select(Version)
        .where(Version.repository_id == repository_id, Version.commit_id == commit)
        .order_by(col(Version.deleted_at).is_not(None), col(Version.number).desc())
        .limit(1)
    )
    return session.exec(query).first()


def versions_by_id(session: Session, ids: Iterable[int]) -> dict[int, Version]:
    wanted = set(ids)
    if not wanted:
        return {}
    return {row.id: row for row in session.exec(select(Version).where(col(Version.id).in_(wanted)))}


def versions_by_digests(session: Session, digests: Iterable[str]) -> list[Version]:
    """List the live versions with these contents."""
    query = select(Version).where(col(Version.digest).in_(set(digests)), col(Version.deleted_at).is_(None))
    return list(session.exec(query))


def lock_versions(session: Session, ids: Iterable[int], *, exclusive: bool = False) -> list[Version]:
    """Read versions and lock them until the end of the transaction.

    Deriving from a version takes a shared lock; deleting it takes an exclusive one before it looks for derived
    versions.
    """
    query = select(Version).where(col(Version.id).in_(set(ids))).order_by(col(Version.id))
    query = query.with_for_update(read=not exclusive).execution_options(populate_existing=True)
    return list(session.exec(query))


def list_versions(
    session: Session, repository_id: int, *, before: int | None, limit: int, only: Set[int] | None = None
) -> list[Version]:
    """List live versions, newest first."""
    query = select(Version).where(
        Version.repository_id == repository_id, col(Version.deleted_at).is_(None), _among(only)
    )
    if before is not None:
        query = query.where(col(Version.number) < before)
    return list(session.exec(query.order_by(col(Version.number).desc()).limit(limit)))


def commits(session: Session, repository_id: int, *, limit: int, only: Set[int] | None = None) -> list[tuple[int, str]]:
    """List number and commit of live versions, newest first, without loading manifests."""
    query = (
        select(Version.number, Version.commit_id)
        .where(Version.repository_id == repository_id, col(Version.deleted_at).is_(None), _among(only))
        .order_by(col(Version.number).desc())
        .limit(limit)
    )
    return [(number, commit) for number, commit in session.exec(query)]


def files_of(session: Session, version_ids: Iterable[int]) -> dict[int, list[VersionBlob]]:
    """Return the files of several versions in one query."""
    result: dict[int, list[VersionBlob]] = {}
    query = select(VersionBlob).where(col(VersionBlob.version_id).in_(set(version_ids))).order_by(col(VersionBlob.path))
    for row in session.exec(query):
        result.setdefault(row.version_id, []).append(row)
    return result


def file(session: Session, version_id: int, path: str) -> VersionBlob | None:
    return session.exec(
        select(VersionBlob).where(VersionBlob.version_id == version_id, VersionBlob.path == path)
    ).first()


def readable(session: Session, ids: Iterable[int], scope: Scope) -> set[int]:
    """Return those of these versions that may be read."""
    query = (
        select(Version.id)
        .join(Repository, col(Repository.id) == col(Version.repository_id))
        .where(col(Version.id).in_(set(ids)), scope.versions())
    )
    return set(session.exec(query))


def shared_versions(session: Session, repository_id: int, scope: Scope) -> set[int]:
    """Return the live versions of a repository that may be read."""
    query = (
        select(Version.id)
        .join(Repository, col(Repository.id) == col(Version.repository_id))
        .where(Version.repository_id == repository_id, col(Version.deleted_at).is_(None), scope.versions())
    )
    return set(session.exec(query))


def readable_blob(session: Session, digest: str, scope: Scope) -> int | None:
    """Return the size of a sound blob of a live version in these namespaces; None if there is none."""
    query = (
        select(VersionBlob.size)
        .join(Version, col(Version.id) == col(VersionBlob.version_id))
        .join(Repository, col(Repository.id) == col(Version.repository_id))
        .join(Blob, col(Blob.digest) == col(VersionBlob.digest))
        .where(
            VersionBlob.digest == digest,
            col(VersionBlob.stored).is_(True),
            col(Version.deleted_at).is_(None),
            Blob.state == "ok",
            scope.where(col(Repository.namespace)),
        )
        .limit(1)
    )
    return session.exec(query).first()


def _among(only: Set[int] | None) -> ColumnElement[bool]:
    return true() if only is None else col(Version.id).in_(only)


def only_of(session: Session, version_ids: Iterable[int], scope: Scope) -> dict[str, int]:
    """Return the blobs, with sizes, that these versions have and no other live one in these namespaces."""
    ids = set(version_ids)
    own = session.exec(
        select(VersionBlob.digest, VersionBlob.size).where(
            col(VersionBlob.version_id).in_(ids), col(VersionBlob.stored).is_(True)
        )
    )
    sizes: dict[str, int] = dict(own.all())
    others = (
        select(VersionBlob.digest)
        .join(Version, col(Version.id) == col(VersionBlob.version_id))
        .join(Repository, col(Repository.id) == col(Version.repository_id))
        .where(
            col(VersionBlob.digest).in_(set(sizes)),
            col(Version.id).not_in(ids),
            col(VersionBlob.stored).is_(True),
            col(Version.deleted_at).is_(None),
            scope.where(col(Repository.namespace)),
        )
    )
    shared = set(session.exec(others.distinct()))
    return {digest: size for digest, size in sizes.items() if digest not in shared}


def edges_up(session: Session, ids: Iterable[int]) -> list[VersionEdge]:
    return list(session.exec(select(VersionEdge).where(col(VersionEdge.child_id).in_(set(ids)))))


def edges_down(session: Session, ids: Iterable[int]) -> list[VersionEdge]:
    return list(session.exec(select(VersionEdge).where(col(VersionEdge.parent_id).in_(set(ids)))))


def live_children(session: Session, version_ids: Iterable[int]) -> list[int]:
    """Return the ids of live versions that derive from one of these versions."""
    query = (
        select(Version.id)
        .join(VersionEdge, col(VersionEdge.child_id) == col(Version.id))
        .where(col(VersionEdge.parent_id).in_(set(version_ids)), col(Version.deleted_at).is_(None))
        .distinct()
        .order_by(col(Version.id))
    )
    return list(session.exec(query))


def create_repository(session: Session, path: RepositoryPath, kind: str, at: int) -> bool:
    """Insert a repository, and its namespace, if it does not exist. Return True if this call inserted it."""
    home = {"name": path.namespace, "visibility": "private", "created_at": at}
    session.execute(insert_ignore(session, Namespace).values(**home))
    values = {"namespace": path.namespace, "name": path.name, "kind": kind, "next_number": 1, "created_at": at}
    values["spelling"] = path.spelling if path.spelling != path.name else None
    # RETURNING instead of the row count, which psycopg does not know (-1) with an identity column.
    statement = insert_ignore(session, Repository).values(**values).returning(col(Repository.id))
    return session.connection().execute(statement).first() is not None
