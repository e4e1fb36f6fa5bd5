"""Resolve references and selectors to versions: the only place that defines their meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract import reference
from lora_contract.errors import RegistryError
from lora_contract.reference import Reference
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import absent, may_read
from lora_registry.db.tables import Repository, Version
from lora_registry.repositories import store
from lora_registry.repositories.paths import RepositoryPath, VersionPath
from lora_registry.tags import store as tag_store

_COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True, slots=True)
class Readable:
    """A repository of which a caller may read something.

    only: ids of the versions that it may read; None: all, and tags, history and settings too. Whoever may read an
    adapter may read the base version that it pins, and nothing else of that base.
    """

    repo: Repository
    only: frozenset[int] | None = None


def repository(session: Session, principal: Principal, path: RepositoryPath, *, lock: bool = False) -> Repository:
    """Return a live repository in a namespace that the caller may read. Raises `not-found`, `deleted`."""
    _check(path)
    row = store.repository(session, path, lock=lock) if may_read(session, principal, path.namespace) else None
    return _existing(principal, path, row)


def readable(session: Session, principal: Principal, path: RepositoryPath) -> Readable:
    """Return a live repository of which the caller may read something. Raises `not-found`, `deleted`."""
    _check(path)
    if may_read(session, principal, path.namespace):
        return Readable(_existing(principal, path, store.repository(session, path)))
    row = store.repository(session, path)
    only = set() if row is None else store.shared_versions(session, row.id, principal.visible())
    return Readable(_existing(principal, path, row if only else None), frozenset(only))


def version(session: Session, principal: Principal, path: VersionPath) -> tuple[Repository, Version]:
    """Resolve `namespace/name:selector`. Raises `not-found`, `deleted`, `invalid-reference`, `conflict`."""
    found = readable(session, principal, path.repository)
    return found.repo, in_repository(session, found, path.selector)


def in_repository(session: Session, found: Readable, selector: str) -> Version:
    """Resolve a selector in a repository."""
    if _COMMIT.match(selector):
        return _live(store.version_by_commit(session, found.repo.id, selector), found, f"commit {selector[:12]}")
    return _select(session, found, reference.parse_selector(found.repo.namespace, found.repo.name, selector))


def lock(session: Session, repo: Repository) -> Repository:
    """Lock a repository until the end of the transaction, and read it again."""
    row = store.repository(session, RepositoryPath(repo.namespace, repo.name), lock=True)
    assert row is not None, "rows of repositories are never removed"
    session.refresh(row)
    return row


def tombstone(session: Session, repo: Repository, selector: str) -> Version:
    """Resolve the number or digest of a deleted version. Raises `not-found`, `conflict` if it is not deleted."""
    ref = reference.parse_selector(repo.namespace, repo.name, selector)
    found = None
    if ref.digest is not None:
        found = store.version_by_digest(session, repo.id, str(ref.digest))
    elif ref.version is not None:
        found = store.version_by_number(session, repo.id, ref.version)
    if found is None:
        raise RegistryError("not-found", f"{repo.label} has no {selector[:80]}.")
    if found.deleted_at is None:
        raise RegistryError("conflict", f"{repo.label}:v{found.number} is not deleted.")
    return found


def by_reference(session: Session, principal: Principal, ref: Reference) -> tuple[Repository, Version]:
    """Resolve a parsed reference; the namespace defaults to DEFAULT_NAMESPACE."""
    path = RepositoryPath(ref.namespace or reference.DEFAULT_NAMESPACE, ref.name)
    found = readable(session, principal, path)
    return found.repo, _select(session, found, ref)


def by_text(session: Session, principal: Principal, text: str) -> tuple[Repository, Version]:
    """Parse and resolve a reference; the namespace defaults to DEFAULT_NAMESPACE."""
    return by_reference(session, principal, reference.parse(text).with_namespace(reference.DEFAULT_NAMESPACE))


def _check(path: RepositoryPath) -> None:
    reference.check_namespace(path.namespace)
    reference.check_name(path.name)


def _existing(principal: Principal, path: RepositoryPath, row: Repository | None) -> Repository:
    if row is None:
        raise absent(principal, f"There is no repository {path}.")
    if row.deleted_at is not None:
        raise RegistryError("deleted", f"{path} was deleted.")
    return row


def _select(session: Session, found: Readable, ref: Reference) -> Version:
    repo = found.repo
    if ref.digest is not None:
        chosen = _live(store.version_by_digest(session, repo.id, str(ref.digest)), found, ref.digest.short)
        if ref.tag is not None and not tag_store.ever_pointed_to(session, repo.id, ref.tag, chosen.id):
            raise RegistryError("conflict", f"The tag {ref.tag} of {repo.label} never pointed to {ref.digest.short}.")
        if ref.version is not None and ref.version != chosen.number:
            raise RegistryError("conflict", f"{ref.digest.short} is v{chosen.number}, not v{ref.version}.")
        return chosen
    if ref.version is not None:
        return _live(store.version_by_number(session, repo.id, ref.version), found, f"v{ref.version}")
    if ref.tag is not None:
        row = tag_store.tag(session, repo.id, ref.tag)
        if row is None or (found.only is not None and row.version_id not in found.only):
            raise RegistryError("not-found", f"{repo.label} has no tag {ref.tag!r}.")
        return _live(store.versions_by_id(session, [row.version_id]).get(row.version_id), found, ref.tag)
    return _live(store.newest(session, repo.id, found.only), found, "version")


def _live(version: Version | None, found: Readable, what: str) -> Version:
    repo = found.repo
    if version is None or (found.only is not None and version.id not in found.only):
        raise RegistryError("not-found", f"{repo.label} has no {what}.")
    if version.deleted_at is not None:
        raise RegistryError("deleted", f"{repo.label}:v{version.number} was deleted.")
    return version


def base_of(session: Session, repo: Repository, version: Version) -> Version:
    """Return the base version that an adapter pins. Raises `conflict` for other kinds."""
    if repo.kind != "adapter" or version.base_version_id is None:
        raise RegistryError(
            "conflict",
            f"{repo.label} is of kind {repo.kind}; only adapters can be validated.",
        )
    return store.versions_by_id(session, [version.base_version_id])[version.base_version_id]
