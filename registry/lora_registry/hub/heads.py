"""The head of a branch: the newest version, and what was staged on top of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.auth.reading import may_read
from lora_registry.context import Context
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import Repository, Staging, Version
from lora_registry.events import audit
from lora_registry.hub import errors, names, store
from lora_registry.repositories import store as version_store
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import new_id
from lora_registry.tags import store as tag_store

Files = dict[str, tuple[str, int]]
"""Digest and size by path."""

NO_COMMIT: Final = "0" * 40
"""The commit of a repository whose versions were all deleted."""

MAX_STAGING: Final = 1000
"""Repositories and branches of a namespace that have no version yet, or staged files."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a commit to a branch changes. branch: empty for `main`.

    version: the newest one, or the target of the branch. files: those of the version with the staged changes.
    """

    branch: str
    repository: Repository | None
    version: Version | None
    version_files: Files
    staging: Staging | None
    files: Files

    @property
    def commit(self) -> str:
        """The commit that a client sees as the newest."""
        if self.staging is not None and (self.version is None or self.files != self.version_files):
            return self.staging.commit_id
        return self.version.commit_id if self.version is not None else NO_COMMIT

    def matches(self, commit: str) -> bool:
        """Whether a parent commit names this head. A client that read the version need not know what is staged."""
        return commit in {self.commit, self.version.commit_id if self.version else ""}


def writable(caller: Caller, repo_id: str) -> RepositoryPath:
    """Return the repository to write to; it need not exist. Raises `forbidden`, and `not-found` as RepoNotFound."""
    path = named(repo_id)
    if path is None:
        raise errors.repo_not_found(repo_id, caller.principal)
    try:
        caller.require("writer", path.namespace)
    except RegistryError as error:
        if error.code not in ("not-found", "unauthenticated"):
            raise
        raise errors.repo_not_found(repo_id, caller.principal) from error
    return path


def named(repo_id: str) -> RepositoryPath | None:
    """Return the repository that an id spells out; None if it is invalid here."""
    target = next((target for target in names.targets(repo_id) if target.pin is None), None)
    return None if target is None else RepositoryPath(target.namespace, target.name)


def branch_of(revision: str) -> str:
    """Return the branch of a revision to commit to; empty for `main`. Raises `not-found` as RevisionNotFound."""
    found = names.selector(revision.removeprefix("refs/heads/"))
    if found == names.LATEST:
        return ""
    if found is None or names.is_exact(found):
        raise errors.revision_not_found(f"{revision[:200]!r} is not a branch; commits go to main or to a branch.")
    return found


def read(session: Session, caller: Caller, path: RepositoryPath, kind: str, branch: str, *, lock: bool = False) -> Head:
    """Read a head. kind: `model` or `dataset`. lock: lock the repository and what is staged until the end of the
    transaction. Raises `not-found` as RepoNotFound or RevisionNotFound."""
    repo_id = str(path)
    repo = version_store.repository(session, path, lock=lock)
    staged = store.staging(session, path, branch, database_now(session), lock=lock)
    if repo is not None and repo.deleted_at is not None:
        repo = None
        staged = None
    if repo is not None and (repo.kind == "dataset") != (kind == "dataset"):
        raise errors.repo_not_found(repo_id, caller.principal)
    if repo is None and (staged is None or staged.kind != kind):
        if staged is None and branch and store.branches(session, path, database_now(session)):
            raise errors.revision_not_found(f"{repo_id} has no branch {branch}.")
        raise errors.repo_not_found(repo_id, caller.principal)
    version = None
    if repo is not None and branch:
        tag = tag_store.tag(session, repo.id, branch)
        if tag is not None:
            version = version_store.versions_by_id(session, [tag.version_id])[tag.version_id]
    elif repo is not None:
        version = version_store.newest(session, repo.id)
    if version is None and staged is None and (branch or repo is None):
        raise errors.revision_not_found(f"{repo_id} has no branch {branch}.")
    files = {} if version is None else _files(session, version)
    changed = dict(files)
    if staged is not None:
        for row in store.staged_files(session, staged.id):
            if row.digest is None:
                changed.pop(row.path, None)
            else:
                changed[row.path] = (row.digest, row.size)
    return Head(branch, repo, version, files, staged, changed)


def _files(session: Session, version: Version) -> Files:
    rows = version_store.files_of(session, [version.id]).get(version.id, [])
    return {row.path: (row.digest, row.size) for row in rows if row.stored}


def create(session: Session, caller: Caller, path: RepositoryPath, kind: str, branch: str) -> Staging:
    """Stage an empty branch. Raises `exists` if there is one, `quota` if too many have no version yet."""
    at = database_now(session)
    if store.count_staging(session, path.namespace, at) >= MAX_STAGING:
        raise RegistryError(
            "quota",
            f"{path.namespace} has {MAX_STAGING} repositories or branches without a version.",
            hint="Delete those that are not needed; they expire by themselves.",
        )
    row = Staging(
        id=new_id(),
        namespace=path.namespace,
        name=path.name,
        branch=branch,
        kind=kind,
        commit_id=commit_id(path, branch, {}, at),
        author=caller.principal.name,
        created_at=at,
        expires_at=_expiry(caller, at),
    )
    if not store.insert_staging(session, row):
        raise RegistryError("exists", f"{path} exists already.")
    found = store.staging(session, path, branch, at)
    assert found is not None
    return found


def stage(session: Session, caller: Caller, path: RepositoryPath, kind: str, head: Head, files: Files) -> str:
    """Set the files that the branch has beyond its version, and return the commit. The head is locked."""
    at = database_now(session)
    row = head.staging or create(session, caller, path, kind, head.branch)
    changes: dict[str, tuple[str | None, int]] = {
        name: value for name, value in files.items() if head.version_files.get(name) != value
    }
    changes |= {name: (None, 0) for name in head.version_files if name not in files}
    store.replace_files(session, row.id, changes)
    row.commit_id = commit_id(path, head.branch, files, at)
    row.author, row.expires_at = caller.principal.name, _expiry(caller, at)
    session.add(row)
    audit.record(
        session,
        "files-staged",
        principal=caller.principal,
        namespace=path.namespace,
        subject=str(path),
        commit=row.commit_id,
        files=len(changes),
    )
    return row.commit_id


def commit_id(path: RepositoryPath, branch: str, files: Mapping[str, tuple[str, int]], at: int) -> str:
    """Return a commit for files that are no version: it is not the beginning of a version's digest."""
    state = hashlib.sha256(f"staged {path} {branch} {at}\n".encode())
    for name, (digest, size) in sorted(files.items()):
        state.update(f"{name}\0{digest}\0{size}\n".encode())
    return state.hexdigest()[:40]


def visible(session: Session, caller: Caller, repo_id: str, kind: str, revision: str) -> Head | None:
    """Return the head of a repository that has no version yet, if the caller may read it."""
    place = named(repo_id)
    if place is None or not may_read(session, caller.principal, place.namespace):
        return None
    at = database_now(session)
    rows = [row for row in store.branches(session, place, at) if row.kind == kind]
    if not rows or version_store.repository(session, place) is not None:
        return None
    wanted = names.selector(revision)
    for row in rows:
        if wanted in (row.commit_id, row.branch or names.LATEST):
            return read(session, caller, place, kind, row.branch)
    raise errors.revision_not_found(f"{place} has no revision {revision[:200]!r} yet.")


def _expiry(caller: Caller, at: int) -> int:
    return at + caller.ctx.settings.upload_seconds * 1_000_000


def sweep(ctx: Context) -> int:
    """Remove what was staged and has expired. Return the number of branches."""
    with ctx.db.write() as session:
        return store.remove(session, store.expired(session, database_now(session)))
