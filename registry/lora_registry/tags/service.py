"""Tags: list, show, move, remove, protect, roll back, history."""

from __future__ import annotations

from sqlmodel import Session

from lora_contract import reference
from lora_contract.errors import RegistryError
from lora_contract.wire.tags import TagHistory, TagList, TagView
from lora_registry.auth.caller import Caller
from lora_registry.db.tables import Repository, Tag
from lora_registry.events import audit
from lora_registry.repositories import resolve
from lora_registry.repositories import store as version_store
from lora_registry.repositories.paths import RepositoryPath, VersionPath
from lora_registry.runtime import paging
from lora_registry.runtime.faults import fault_point
from lora_registry.tags import moves, store, views
from lora_registry.tags.moves import Precondition


def show(caller: Caller, path: RepositoryPath, tag: str) -> TagView:
    with caller.ctx.db.read() as session:
        repo = resolve.repository(session, caller.principal, path)
        row = _existing(session, repo, tag)
        return views.current(session, repo, row)


def list_all(caller: Caller, path: RepositoryPath) -> TagList:
    with caller.ctx.db.read() as session:
        repo = resolve.repository(session, caller.principal, path)
        rows = store.tags(session, [repo.id])
        targets = version_store.versions_by_id(session, (row.version_id for row in rows))
        return TagList(items=[views.tag(repo, row, targets[row.version_id]) for row in rows])


def history(caller: Caller, path: RepositoryPath, *, tag: str | None, cursor: str | None, limit: int) -> TagHistory:
    """List the moves of one tag or of all, newest first."""
    before = paging.decode(cursor, int)
    with caller.ctx.db.read() as session:
        repo = resolve.repository(session, caller.principal, path)
        rows = store.moves(session, repo.id, name=tag, before=before[0] if before else None, limit=limit)
        return TagHistory(
            items=views.moves(session, rows),
            next_cursor=paging.encode(rows[-1].id) if len(rows) == limit else None,
        )


def move(
    caller: Caller,
    path: RepositoryPath,
    tag: str,
    *,
    target: str,
    expect: Precondition,
    reason: str,
) -> TagView:
    """Move a tag to the version that `target` selects, or create it.

    Raises `tag-moved` with the current target, `tag-protected`, `tag-gated`, `not-found`.
    """
    reference.check_tag(tag)
    caller.require("writer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        _, version = resolve.version(session, caller.principal, VersionPath(path, target))
        row = moves.set_tag(session, caller.principal, repo, tag, version, expect=expect, reason=reason)
        fault_point("tag.before-commit")
        view = views.current(session, repo, row)
    fault_point("tag.after-commit")
    return view


def remove(caller: Caller, path: RepositoryPath, tag: str, *, expect: Precondition, reason: str) -> None:
    caller.require("writer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        row = _existing(session, repo, tag)
        moves.check(session, caller.principal, repo, row, tag, expect)
        moves.log(session, caller.principal, repo, tag, row.generation + 1, row.version_id, None, reason)
        session.delete(row)


def protect(caller: Caller, path: RepositoryPath, tag: str, *, protected: bool) -> TagView:
    """Protect a tag or remove its protection. Requires a maintainer of the namespace."""
    caller.require("maintainer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        row = _existing(session, repo, tag)
        if row.protected != protected:
            row.protected = protected
            audit.record(
                session,
                "tag-protected" if protected else "tag-unprotected",
                principal=caller.principal,
                namespace=repo.namespace,
                subject=f"{repo.label}:{tag}",
            )
        return views.current(session, repo, row)


def rollback(
    caller: Caller,
    path: RepositoryPath,
    tag: str,
    *,
    to: str | None,
    expect: Precondition,
    reason: str,
) -> TagView:
    """Roll a tag back to its previous target, or to `to`, which must be an earlier target."""
    caller.require("writer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        row = _existing(session, repo, tag)
        if to is None:
            before = store.previous_target(session, repo.id, tag, row.version_id)
            if before is None:
                raise RegistryError("conflict", f"The tag {tag} never pointed to another version that still exists.")
            version = version_store.versions_by_id(session, [before])[before]
        else:
            _, version = resolve.version(session, caller.principal, VersionPath(path, to))
            if not store.ever_pointed_to(session, repo.id, tag, version.id):
                raise RegistryError(
                    "conflict",
                    f"The tag {tag} never pointed to v{version.number}.",
                    hint="Move it there with `lora-reg tag`.",
                )
        # A rollback always has a precondition, by default the current generation.
        precondition = expect if expect.is_conditional else Precondition(generation=row.generation)
        row = moves.set_tag(
            session,
            caller.principal,
            repo,
            tag,
            version,
            expect=precondition,
            reason=reason or "rollback",
            is_rollback=True,
        )
        return views.current(session, repo, row)


def _existing(session: Session, repo: Repository, tag: str) -> Tag:
    row = store.tag(session, repo.id, tag)
    if row is None:
        raise RegistryError("not-found", f"{repo.label} has no tag {tag[:128]!r}.")
    return row
