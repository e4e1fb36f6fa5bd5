"""Resolve references and selectors to versions: the only place that defines their meaning."""

from __future__ import annotations

import re
from typing import Final

from sqlmodel import Session

from lora_contract import reference
from lora_contract.errors import RegistryError
from lora_contract.reference import Reference
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import Repository, Version
from lora_registry.repositories import store
from lora_registry.repositories.paths import RepositoryPath, VersionPath
from lora_registry.tags import store as tag_store

_COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")


def repository(session: Session, principal: Principal, path: RepositoryPath, *, lock: bool = False) -> Repository:
    """Return a live repository that the caller may read. Raises `not-found`, `deleted`."""
    reference.check_namespace(path.namespace)
    reference.check_name(path.name)
    row = store.repository(session, path, lock=lock) if principal.may("reader", path.namespace) else None
    if row is None:
        raise RegistryError("not-found", f"There is no repository {path}.")
    if row.deleted_at is not None:
        raise RegistryError("deleted", f"{path} was deleted.")
    return row


def version(session: Session, principal: Principal, path: VersionPath) -> tuple[Repository, Version]:
    """Resolve `namespace/name:selector`. Raises `not-found`, `deleted`, `invalid-reference`, `conflict`."""
    repo = repository(session, principal, path.repository)
    return repo, in_repository(session, repo, path.selector)


def in_repository(session: Session, repo: Repository, selector: str) -> Version:
    """Resolve a selector in a repository."""
    if _COMMIT.match(selector):
        found = store.version_by_commit(session, repo.id, selector)
        return _live(found, repo, f"commit {selector[:12]}")
    return _select(session, repo, reference.parse_selector(repo.namespace, repo.name, selector))


def by_reference(session: Session, principal: Principal, ref: Reference) -> tuple[Repository, Version]:
    """Resolve a parsed reference; the namespace defaults to DEFAULT_NAMESPACE."""
    repo = repository(session, principal, RepositoryPath(ref.namespace or reference.DEFAULT_NAMESPACE, ref.name))
    return repo, _select(session, repo, ref)


def by_text(session: Session, principal: Principal, text: str) -> tuple[Repository, Version]:
    """Parse and resolve a reference; the namespace defaults to DEFAULT_NAMESPACE."""
    return by_reference(session, principal, reference.parse(text).with_namespace(reference.DEFAULT_NAMESPACE))


def _select(session: Session, repo: Repository, ref: Reference) -> Version:
    repo_id = repo.id
    if ref.digest is not None:
        found = _live(store.version_by_digest(session, repo_id, str(ref.digest)), repo, ref.digest.short)
        if ref.tag is not None and not tag_store.ever_pointed_to(session, repo_id, ref.tag, found.id):
            raise RegistryError(
                "conflict", f"The tag {ref.tag} of {repo.namespace}/{repo.name} never pointed to {ref.digest.short}."
            )
        if ref.version is not None and ref.version != found.number:
            raise RegistryError("conflict", f"{ref.digest.short} is v{found.number}, not v{ref.version}.")
        return found
    if ref.version is not None:
        return _live(store.version_by_number(session, repo_id, ref.version), repo, f"v{ref.version}")
    if ref.tag is not None:
        row = tag_store.tag(session, repo_id, ref.tag)
        if row is None:
            raise RegistryError("not-found", f"{repo.namespace}/{repo.name} has no tag {ref.tag!r}.")
        return _live(store.versions_by_id(session, [row.version_id]).get(row.version_id), repo, ref.tag)
    return _live(store.newest(session, repo_id), repo, "version")


def _live(found: Version | None, repo: Repository, what: str) -> Version:
    if found is None:
        raise RegistryError("not-found", f"{repo.namespace}/{repo.name} has no {what}.")
    if found.deleted_at is not None:
        raise RegistryError("deleted", f"{repo.namespace}/{repo.name}:v{found.number} was deleted.")
    return found


def base_of(session: Session, repo: Repository, version: Version) -> Version:
    """Return the base version that an adapter pins. Raises `conflict` for other kinds."""
    if repo.kind != "adapter" or version.base_version_id is None:
        raise RegistryError(
            "conflict",
            f"{repo.namespace}/{repo.name} is of kind {repo.kind}; only adapters can be validated.",
        )
    return store.versions_by_id(session, [version.base_version_id])[version.base_version_id]
