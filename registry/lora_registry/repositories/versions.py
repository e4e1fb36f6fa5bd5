"""Versions: show, list, locate files, yank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import VersionList, VersionView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.events import audit
from lora_registry.keeping import store as kept
from lora_registry.keeping.reading import Content
from lora_registry.repositories import resolve, store, views
from lora_registry.repositories.paths import RepositoryPath, VersionPath
from lora_registry.runtime import paging

MAX_NAMED: Final = 5
"""Maximum number of derived versions named in an error."""
MAX_LOOKED_UP: Final = 100


@dataclass(frozen=True, slots=True)
class FileLocation:
    """The blob of a file. version: the version's digest."""

    path: str
    content: Content
    version: str
    commit: str

    @property
    def digest(self) -> Digest:
        return self.content.where

    @property
    def size(self) -> int:
        return self.content.size


def show(caller: Caller, path: VersionPath) -> VersionView:
    with caller.ctx.db.read() as session:
        repo, version = resolve.version(session, caller.principal, path)
        return views.version(session, caller.principal, repo, version)


def list_all(caller: Caller, path: RepositoryPath, *, cursor: str | None, limit: int) -> VersionList:
    """List live versions, newest first."""
    before = paging.decode(cursor, int)
    with caller.ctx.db.read() as session:
        found = resolve.readable(session, caller.principal, path)
        rows = store.list_versions(
            session, found.repo.id, before=before[0] if before else None, limit=limit, only=found.only
        )
        return VersionList(
            items=views.versions(session, caller.principal, found.repo, rows),
            next_cursor=paging.encode(rows[-1].number) if len(rows) == limit else None,
        )


def manifest(caller: Caller, path: VersionPath) -> tuple[bytes, str]:
    """Return the manifest bytes and their digest."""
    with caller.ctx.db.read() as session:
        _, version = resolve.version(session, caller.principal, path)
        return version.manifest, version.digest


def locate(caller: Caller, path: VersionPath, file: str) -> FileLocation:
    """Locate a file. Raises `not-found` if the file is missing or its bytes were never uploaded."""
    with caller.ctx.db.read() as session:
        repo, version = resolve.version(session, caller.principal, path)
        row = store.file(session, version.id, file)
        blob = None if row is None else kept.blob(session, row.digest)
    label = f"{repo.label}:v{version.number}"
    if row is None or blob is None:
        raise RegistryError("not-found", f"{label} has no file {file[:120]!r}.", commit=version.commit_id)
    if not row.stored:
        raise RegistryError(
            "not-found",
            f"{file} of {label} was never uploaded.",
            hint="The base was registered with --manifest-only; add it with its weights.",
        )
    return FileLocation(row.path, Content.of(blob, row.path), version.digest, version.commit_id)


def yank(caller: Caller, path: VersionPath, reason: str | None) -> VersionView:
    """Yank a version; reason None undoes it. Tags keep pointing to it; `latest` skips it."""
    caller.require("maintainer", path.namespace)
    with caller.ctx.db.write() as session:
        resolve.repository(session, caller.principal, path.repository, lock=True)
        repo, version = resolve.version(session, caller.principal, path)
        if version.yanked_reason != reason:
            version.yanked_reason = reason
            audit.record(
                session,
                "version-yanked" if reason is not None else "version-unyanked",
                principal=caller.principal,
                namespace=path.namespace,
                subject=f"{path.repository}:v{version.number}",
                reason=reason or "",
            )
            session.flush()
        return views.version(session, caller.principal, repo, version)


def describe_derived(session: Session, principal: Principal, label: str, derived: Sequence[int]) -> str:
    """Say what keeps a version or repository from being deleted: a count, and names that the caller may read."""
    named = [
        f"{ref.namespace}/{ref.name}:v{ref.number}"
        for ref in views.readable_refs(session, principal, derived[:MAX_LOOKED_UP]).values()
    ][:MAX_NAMED]
    several = len(derived) != 1
    count = f"{len(derived)} version{'s were' if several else ' was'} derived from {label}"
    return f"{count}: {', '.join(named)}{' and others' if len(named) < len(derived) else ''}." if named else f"{count}."
