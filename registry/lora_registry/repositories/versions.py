"""Versions: show, list, yank, delete, and where their files are."""

from __future__ import annotations

from dataclasses import dataclass

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.wire.catalog import VersionList, VersionView
from lora_registry.auth.principals import Principal, require
from lora_registry.context import Context
from lora_registry.events import audit
from lora_registry.repositories import resolve, store, views
from lora_registry.runtime import paging
from lora_registry.runtime.clock import now
from lora_registry.tags import store as tag_store


@dataclass(frozen=True, slots=True)
class Located:
    """A file of a version: its blob, and the version's digest."""

    path: str
    digest: Digest
    size: int
    version: str
    commit: str


def show(ctx: Context, principal: Principal, namespace: str, name: str, selector: str) -> VersionView:
    with ctx.db.read() as session:
        repo, version = resolve.version(session, principal, namespace, name, selector)
        return views.version(session, repo, version)


def list_all(
    ctx: Context, principal: Principal, namespace: str, name: str, *, cursor: str | None, limit: int
) -> VersionList:
    """Live versions, newest first."""
    before = paging.decode(cursor, int)
    with ctx.db.read() as session:
        repo = resolve.repository(session, principal, namespace, name)
        rows = store.list_versions(session, repo.id, before=before[0] if before else None, limit=limit)
        return VersionList(
            items=views.versions(session, repo, rows),
            next_cursor=paging.encode(rows[-1].number) if len(rows) == limit else None,
        )


def manifest(ctx: Context, principal: Principal, namespace: str, name: str, selector: str) -> tuple[bytes, str]:
    """The manifest bytes and their digest."""
    with ctx.db.read() as session:
        _, version = resolve.version(session, principal, namespace, name, selector)
        return version.manifest, version.digest


def locate(ctx: Context, principal: Principal, namespace: str, name: str, selector: str, path: str) -> Located:
    """Where a file is. Raises `not-found` where there is none, or where a base was registered without its weights."""
    with ctx.db.read() as session:
        repo, version = resolve.version(session, principal, namespace, name, selector)
        row = store.file(session, version.id, path)
    where = f"{repo.namespace}/{repo.name}:v{version.number}"
    if row is None:
        raise RegistryError("not-found", f"{where} has no file {path[:120]!r}.", commit=version.commit_id)
    if not row.stored:
        raise RegistryError(
            "not-found",
            f"{path} of {where} was never uploaded.",
            hint="The base was registered with --manifest-only; add it with its weights.",
        )
    return Located(row.path, Digest.parse(row.digest), row.size, version.digest, version.commit_id)


def yank(
    ctx: Context, principal: Principal, namespace: str, name: str, selector: str, reason: str | None
) -> VersionView:
    """Mark a version as not to be used (reason None lifts it). Tags keep pointing to it, `latest` passes it by."""
    require(principal, "writer", namespace)
    with ctx.db.write() as session:
        resolve.repository(session, principal, namespace, name, lock=True)
        repo, version = resolve.version(session, principal, namespace, name, selector)
        if version.yanked_reason != reason:
            version.yanked_reason = reason
            audit.record(
                session,
                "version-yanked" if reason is not None else "version-unyanked",
                principal=principal,
                namespace=namespace,
                subject=f"{namespace}/{name}:v{version.number}",
                reason=reason or "",
            )
            session.flush()
        return views.version(session, repo, version)


def delete(ctx: Context, principal: Principal, namespace: str, name: str, selector: str) -> None:
    """Make a tombstone of a version: its number is never given out again.

    Raises `in-use` where a tag points to it, or a live version was made from it.
    """
    require(principal, "admin", namespace)
    with ctx.db.write() as session:
        resolve.repository(session, principal, namespace, name, lock=True)
        repo, version = resolve.version(session, principal, namespace, name, selector)
        where = f"{repo.namespace}/{repo.name}:v{version.number}"
        tags = tag_store.tags_of_versions(session, [version.id]).get(version.id)
        if tags:
            raise RegistryError("in-use", f"The tag {tags[0]} points to {where}.", hint="Move the tag first.")
        store.hold_versions(session, [version.id], exclusive=True)
        children = store.live_children(session, version.id)
        if children:
            other = views.refs(session, children)[children[0].id]
            raise RegistryError("in-use", f"{other.namespace}/{other.name}:v{other.number} was made from {where}.")
        version.deleted_at = now()
        audit.record(
            session, "version-deleted", principal=principal, namespace=namespace, subject=where, digest=version.digest
        )
