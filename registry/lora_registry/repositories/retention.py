"""Retention rules: keep the newest versions, those that a tag points to, and those that live versions derive from."""

from __future__ import annotations

from sqlmodel import Session, col, select

from lora_contract.wire.repositories import RetentionView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import WORKER, Principal
from lora_registry.context import Context
from lora_registry.db.tables import Repository, Retention, Version
from lora_registry.events import audit
from lora_registry.repositories import deleting, resolve, store
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import now
from lora_registry.tags import store as tag_store


def show(caller: Caller, path: RepositoryPath, *, keep_last: int | None = None) -> RetentionView:
    """Show the rule, and which versions it would delete now; with `keep_last`, those that such a rule would."""
    caller.require("maintainer", path.namespace)
    with caller.ctx.db.read() as session:
        repo = resolve.repository(session, caller.principal, path)
        return _view(caller.principal, session, repo, keep_last)


def set_rule(caller: Caller, path: RepositoryPath, keep_last: int | None) -> RetentionView:
    """Set the rule of a repository; None removes it. Versions go with the next collection, after the grace period."""
    caller.require("maintainer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        row = session.get(Retention, repo.id)
        if row is not None and keep_last is None:
            session.delete(row)
        elif keep_last is not None:
            row = row or Retention(repository_id=repo.id, keep_last=keep_last, author="", updated_at=0)
            row.keep_last, row.author, row.updated_at = keep_last, caller.principal.name, now()
            session.add(row)
        audit.record(
            session,
            "retention-set",
            principal=caller.principal,
            namespace=path.namespace,
            subject=repo.label,
            keep_last=keep_last,
        )
        session.flush()
        return _view(caller.principal, session, repo, None)


def apply(ctx: Context) -> int:
    """Delete the versions that the rules let go. Return their number."""
    with ctx.db.read() as session:
        ids = list(session.exec(select(Retention.repository_id).order_by(col(Retention.repository_id))))
    deleted = 0
    for repository_id in ids:
        with ctx.db.write() as session:
            deleted += _apply(Caller(ctx, WORKER), session, repository_id)
    return deleted


def _apply(caller: Caller, session: Session, repository_id: int) -> int:
    repo = store.repositories_by_id(session, [repository_id])[repository_id]
    repo = resolve.lock(session, repo)
    rule = session.get(Retention, repository_id)
    if repo.deleted_at is not None or rule is None:
        return 0
    candidates = _unneeded(session, repo, rule.keep_last)
    # Whoever derives from a version has locked it: look again for derived ones after this lock.
    store.lock_versions(session, [version.id for version in candidates], exclusive=True)
    doomed = _unneeded(session, repo, rule.keep_last)
    for version in doomed:
        deleting.bury(caller, session, repo, version, kind="version-expired", reason=f"keeps the last {rule.keep_last}")
    return len(doomed)


def _unneeded(session: Session, repo: Repository, keep_last: int) -> list[Version]:
    """Return the live versions that a rule lets go, newest first."""
    old = store.list_versions(session, repo.id, before=None, limit=2**31 - 1)[keep_last:]
    tags = tag_store.tags_of_versions(session, [version.id for version in old])
    untagged = [version for version in old if not tags.get(version.id)]
    return [version for version in untagged if not store.live_children(session, [version.id])]


def _view(principal: Principal, session: Session, repo: Repository, keep_last: int | None) -> RetentionView:
    rule = session.get(Retention, repo.id)
    stated = rule.keep_last if rule is not None else None
    limit = keep_last if keep_last is not None else stated
    doomed = [] if limit is None else _unneeded(session, repo, limit)
    return RetentionView(
        keep_last=stated,
        would_delete=[version.number for version in doomed],
        would_free=sum(store.only_of(session, [version.id for version in doomed], principal.visible()).values()),
    )
