"""Insert a version: the only place that assigns version numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlmodel import Session

from lora_contract import reference
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import Manifest
from lora_registry.auth.principals import Principal
from lora_registry.blobs.damage import known
from lora_registry.db.tables import BaseFingerprintRow, Repository, Version, VersionBlob, VersionEdge
from lora_registry.events import audit
from lora_registry.keeping import store as kept
from lora_registry.repositories import store, usage
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import now
from lora_registry.runtime.faults import fault_point


@dataclass(frozen=True, slots=True)
class Derivation:
    """Origin of a derived version: the recipe's digest and the ids of the input versions."""

    recipe: str
    inputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A checked version, ready to insert.

    stored: digests whose bytes are in the store. weights_absent: a base whose weights are not among them. made: objects
    that a job has stored for it, by address with sizes, to be recorded with it.
    """

    manifest: Manifest
    stored: frozenset[str]
    base_version_id: int | None
    parent_ids: tuple[int, ...]
    facts: dict[str, object] | None
    fingerprint: bytes | None
    message: str
    meta: dict[str, str]
    derivation: Derivation | None = None
    weights_absent: bool = False
    made: Mapping[Digest, int] = field(default_factory=dict)


def insert(
    session: Session, principal: Principal, path: RepositoryPath, draft: Draft
) -> tuple[Repository, Version, bool]:
    """Insert a draft as the next version of `namespace/name`, or find the version with this content.

    Runs in the caller's transaction and takes the repository's lock. The bool is True if the version is new.
    """
    kind, digest = draft.manifest.kind, str(draft.manifest.digest)
    repo = _lock_or_create(session, principal, path, kind)
    existing = store.version_by_digest(session, repo.id, digest)
    if existing is not None and existing.deleted_at is None:
        return repo, existing, False
    _check_origins(session, draft)
    _keep_blobs(session, draft)
    at = now()
    version = Version(
        repository_id=repo.id,
        number=repo.next_number,
        digest=digest,
        commit_id=draft.manifest.digest.commit,
        manifest=draft.manifest.to_bytes(),
        manifest_config=draft.manifest.config_bytes(),
        size=sum(entry.size for entry in draft.manifest.files),
        base_version_id=draft.base_version_id,
        recipe_digest=draft.derivation.recipe if draft.derivation else None,
        weights_absent=draft.weights_absent,
        facts=json.dumps(draft.facts, sort_keys=True) if draft.facts is not None else None,
        meta=json.dumps(draft.meta, sort_keys=True),
        message=draft.message,
        author=principal.name,
        created_at=at,
    )
    repo.next_number += 1
    session.add_all([repo, version])
    session.flush()
    usage.add(session, path.namespace, size=_stored_size(draft))
    fault_point("commit.inserted")
    for entry in draft.manifest.files:
        session.add(
            VersionBlob(
                version_id=version.id,
                path=entry.path,
                digest=str(entry.digest),
                size=entry.size,
                stored=str(entry.digest) in draft.stored,
            )
        )
    edges = {(parent, "parent") for parent in draft.parent_ids}
    if draft.base_version_id is not None:
        edges.add((draft.base_version_id, "base"))
    if draft.derivation:
        edges |= {(parent, "input") for parent in draft.derivation.inputs}
    for parent, relation in sorted(edges, key=str):
        session.add(VersionEdge(child_id=version.id, parent_id=parent, relation=relation))
    if draft.fingerprint is not None:
        body = draft.fingerprint
        session.add(BaseFingerprintRow(version_id=version.id, digest=str(Digest.of(body)), body=body))
    audit.record(
        session,
        "version-committed",
        principal=principal,
        namespace=path.namespace,
        subject=f"{repo.label}:v{version.number}",
        digest=digest,
    )
    session.flush()
    return repo, version, True


def _stored_size(draft: Draft) -> int:
    return sum(entry.size for entry in draft.manifest.files if str(entry.digest) in draft.stored)


def _keep_blobs(session: Session, draft: Draft) -> None:
    """Lock the blobs that the version will refer to. Raises `corrupt` or `conflict` if one is not stored any more."""
    stored = {str(entry.digest): entry for entry in draft.manifest.files if str(entry.digest) in draft.stored}
    kept.declare(session, {str(where): size for where, size in draft.made.items()})
    kept.lock(session, stored)  # all at once, in one order
    kept.record(session, draft.made)
    found = kept.rescue(session, stored)
    for digest, entry in stored.items():
        if digest not in found:
            row = kept.blob(session, digest)
            if row is not None and row.state in kept.KEPT:
                raise known(kept.place(row), entry.path, row.state)
            raise freed(entry.path, entry.digest)
    kept.declare(session, {str(e.digest): e.size for e in draft.manifest.files if str(e.digest) not in stored})


def freed(name: str, digest: Digest) -> RegistryError:
    """The error of a commit that needs a blob which was freed since its session was opened."""
    return RegistryError(
        "conflict",
        f"{name} ({digest.short}) is not stored any more.",
        hint="Push again: this opens a new session, which asks for the missing bytes.",
    )


def add_weights(session: Session, principal: Principal, repo: Repository, version: Version, draft: Draft) -> bool:
    """Record that the weights of a base, absent until now, are in the store. Return False if they were already, or
    still are absent. Runs in the transaction of `insert`, which found `version` by its content."""
    if draft.weights_absent or not version.weights_absent:
        return False
    _keep_blobs(session, draft)
    before = usage.stored_bytes(session, [version.id])
    usage.add(session, repo.namespace, size=_stored_size(draft) - before, versions=0)
    for file in store.files_of(session, [version.id])[version.id]:
        file.stored = file.digest in draft.stored
        session.add(file)
    complete(session, principal, repo, version)
    return True


def complete(session: Session, principal: Principal, repo: Repository, version: Version) -> None:
    """Record that all weights of a base are stored."""
    version.weights_absent = False
    session.add(version)
    audit.record(
        session,
        "weights-added",
        principal=principal,
        namespace=repo.namespace,
        subject=f"{repo.label}:v{version.number}",
        digest=version.digest,
    )
    session.flush()


def _check_origins(session: Session, draft: Draft) -> None:
    """Lock the versions that this one derives from. Raises `deleted` if one of them was deleted."""
    ids = {draft.base_version_id, *draft.parent_ids, *(draft.derivation.inputs if draft.derivation else ())} - {None}
    parents = store.lock_versions(session, (key for key in ids if key is not None))
    if any(version.deleted_at is not None for version in parents):
        raise RegistryError(
            "deleted",
            "The base, or another version that this one derives from, was deleted in the meantime.",
            hint="Choose another one and push again.",
        )


def check_target(repo: Repository | None, path: RepositoryPath, kind: str) -> None:
    """Check that a version of `kind` may be added to this repository; None: it is to be created.

    Raises `deleted`, `conflict`, and `invalid-reference` for a new repository in a reserved namespace.
    """
    if repo is None:
        reference.check_new_namespace(path.namespace)
        return
    if repo.deleted_at is not None:
        raise RegistryError("deleted", f"{path} was deleted; its name cannot be reused.")
    if repo.kind != kind:
        raise RegistryError("conflict", f"{path} is of kind {repo.kind}, not {kind}.", hint="Choose another name.")


def _lock_or_create(session: Session, principal: Principal, path: RepositoryPath, kind: str) -> Repository:
    """Lock and return the repository; create it if it is missing."""
    repo = store.repository(session, path, lock=True)
    check_target(repo, path, kind)
    if repo is None:
        created = store.create_repository(session, path, kind, now())
        repo = store.repository(session, path, lock=True)
        assert repo is not None
        if created:
            audit.record(
                session,
                "repository-created",
                principal=principal,
                namespace=path.namespace,
                subject=str(path),
                of=kind,
            )
    check_target(repo, path, kind)
    return repo
