"""Repositories: list, show, delete."""

from __future__ import annotations

import re
from typing import Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.manifest import KINDS
from lora_contract.wire.repositories import RepositoryList, RepositoryView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import may_read
from lora_registry.bases import store as base_store
from lora_registry.db.tables import Repository
from lora_registry.events import audit
from lora_registry.repositories import resolve, store, usage, versions, views
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime import paging
from lora_registry.runtime.clock import now
from lora_registry.tags import store as tag_store

_PATTERN: Final = re.compile(r"[A-Za-z0-9._*?/-]{1,200}\Z")


def list_all(
    caller: Caller,
    *,
    kind: str | None,
    namespace: str | None,
    pattern: str | None,
    alias: str | None = None,
    cursor: str | None,
    limit: int,
) -> RepositoryList:
    """List readable repositories by name.

    Args:
        pattern: a glob over `namespace/name` or, without a '/', over the name, in any case of letters.
        alias: of bases, in any case of letters.
    """
    if kind is not None and kind not in KINDS:
        raise RegistryError("invalid-request", f"{kind[:40]!r} is not a kind; expected one of {', '.join(KINDS)}.")
    if pattern is not None and not _PATTERN.match(pattern):
        raise RegistryError(
            "invalid-request",
            f"{pattern[:80]!r} is not a pattern: expected letters, digits, '.', '_', '-', '/', '*' and '?'.",
        )
    after = paging.decode(cursor, str, str)
    with caller.ctx.db.read() as session:
        rows = store.list_repositories(
            session,
            caller.principal.visible(),
            namespace=namespace and namespace.lower(),
            kind=kind,
            like=None if pattern is None else _like(pattern.lower()),
            alias=alias,
            after=(after[0], after[1]) if after else None,
            limit=limit,
        )
        return RepositoryList(
            items=[_view(session, caller.principal, row) for row in rows],
            next_cursor=paging.encode(rows[-1].namespace, rows[-1].name) if len(rows) == limit else None,
        )


def show(caller: Caller, path: RepositoryPath) -> RepositoryView:
    with caller.ctx.db.read() as session:
        found = resolve.readable(session, caller.principal, path)
        return views.repository(session, found.repo, found.only)


def _view(session: Session, principal: Principal, repo: Repository) -> RepositoryView:
    if repo.kind != "base" or may_read(session, principal, repo.namespace):
        return views.repository(session, repo)
    return views.repository(session, repo, store.shared_versions(session, repo.id, principal.visible()))


def delete(caller: Caller, path: RepositoryPath) -> None:
    """Turn a repository into a tombstone: its versions become unreachable and its name is never reused.

    Raises `in-use` if it has a tag, or if a live version elsewhere derives from one of its versions.
    """
    caller.require("admin", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        tags = tag_store.tags(session, [repo.id])
        if tags:
            raise RegistryError(
                "in-use",
                f"{path} has the tag {tags[0].name}.",
                hint="Remove its tags with `lora-reg untag` first.",
            )
        at = now()
        live = store.list_versions(session, repo.id, before=None, limit=2**31 - 1)
        own = [version.id for version in live]
        store.lock_versions(session, own, exclusive=True)
        if derived := sorted(set(store.live_children(session, own)) - set(own)):
            raise RegistryError("in-use", versions.describe_derived(session, caller.principal, str(path), derived))
        for version in live:
            version.deleted_at = at
        repo.deleted_at = at
        usage.remove(session, path.namespace, size=usage.stored_bytes(session, own), versions=len(own))
        base_store.delete_aliases(session, repo.id)
        audit.record(
            session,
            "repository-deleted",
            principal=caller.principal,
            namespace=path.namespace,
            subject=repo.label,
        )


def _like(pattern: str) -> str:
    """Convert a glob to a LIKE pattern, escaped by backslash. Without a '/' it matches the name."""
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%").replace("?", "_")
    return escaped if "/" in pattern else f"%/{escaped}"
