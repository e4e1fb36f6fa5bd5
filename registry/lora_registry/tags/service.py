"""Moving tags: compare-and-swap with full history. A tag never points to nothing and its history never forks."""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session

from lora_contract import reference
from lora_contract.errors import RegistryError
from lora_contract.wire.tags import TagHistory, TagList, TagView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import Repository, Tag, TagMove, Version
from lora_registry.events import audit
from lora_registry.policies import guard
from lora_registry.repositories import resolve
from lora_registry.repositories import store as version_store
from lora_registry.repositories.paths import RepositoryPath, VersionPath
from lora_registry.runtime import paging
from lora_registry.runtime.clock import now
from lora_registry.runtime.faults import fault_point
from lora_registry.tags import store, views


@dataclass(frozen=True, slots=True)
class Precondition:
    """What a caller expects of a tag. generation: it is at this one. absent: there is none. Neither: anything,
    which a protected tag does not accept."""

    generation: int | None = None
    absent: bool = False

    @property
    def stated(self) -> bool:
        return self.absent or self.generation is not None


UNCONDITIONAL = Precondition()


@dataclass(frozen=True, slots=True)
class GateDecision:
    """A gate's decision, by which a governed tag is moved. reports: their ids. forced: for the administrator's reason
    and not because the policy allows it."""

    id: int
    reports: tuple[str, ...]
    forced: bool = False


def show(caller: Caller, path: RepositoryPath, tag: str) -> TagView:
    with caller.ctx.db.read() as session:
        repo = resolve.repository(session, caller.principal, path)
        row = _existing(session, repo, tag)
        return _view(session, repo, row)


def list_all(caller: Caller, path: RepositoryPath) -> TagList:
    with caller.ctx.db.read() as session:
        repo = resolve.repository(session, caller.principal, path)
        rows = store.tags(session, [repo.id])
        targets = version_store.versions_by_id(session, (row.version_id for row in rows))
        return TagList(items=[views.tag(repo, row, targets[row.version_id]) for row in rows])


def history(caller: Caller, path: RepositoryPath, *, tag: str | None, cursor: str | None, limit: int) -> TagHistory:
    """The moves of one tag or of all, newest first."""
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
    """Set a tag to what `target` selects. Raises `tag-moved` with the present value, `tag-protected`, `not-found`."""
    reference.check_tag(tag)
    caller.require("writer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        _, version = resolve.version(session, caller.principal, VersionPath(path, target))
        row = set_in_transaction(session, caller.principal, repo, tag, version, expect=expect, reason=reason)
        fault_point("tag.before-commit")
        view = _view(session, repo, row)
    fault_point("tag.after-commit")
    return view


def remove(caller: Caller, path: RepositoryPath, tag: str, *, expect: Precondition, reason: str) -> None:
    caller.require("writer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        row = _existing(session, repo, tag)
        _check(session, repo, row, tag, expect)
        _log(session, caller.principal, repo, tag, row.generation + 1, row.version_id, None, reason)
        session.delete(row)


def protect(caller: Caller, path: RepositoryPath, tag: str, *, protected: bool) -> TagView:
    """Only an administrator of the namespace protects a tag or lifts it."""
    caller.require("admin", path.namespace)
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
                subject=f"{repo.namespace}/{repo.name}:{tag}",
            )
        return _view(session, repo, row)


def rollback(
    caller: Caller,
    path: RepositoryPath,
    tag: str,
    *,
    to: str | None,
    expect: Precondition,
    reason: str,
) -> TagView:
    """Set a tag back to what it pointed to before, or to `to`, where it must have pointed once."""
    caller.require("writer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        row = _existing(session, repo, tag)
        if to is None:
            before = store.previous_target(session, repo.id, tag, row.version_id)
            if before is None:
                raise RegistryError(
                    "conflict", f"The tag {tag} has never pointed to another version that is still there."
                )
            version = version_store.versions_by_id(session, [before])[before]
        else:
            _, version = resolve.version(session, caller.principal, VersionPath(path, to))
            if not store.pointed_there(session, repo.id, tag, version.id):
                raise RegistryError(
                    "conflict",
                    f"The tag {tag} never pointed to v{version.number}.",
                    hint="Move it there with `lora-reg tag`.",
                )
        # A rollback names the tag it undoes; the present generation is what it expects.
        stated = expect if expect.stated else Precondition(generation=row.generation)
        row = set_in_transaction(
            session, caller.principal, repo, tag, version, expect=stated, reason=reason or "rollback", back=True
        )
        return _view(session, repo, row)


def set_in_transaction(
    session: Session,
    principal: Principal,
    repo: Repository,
    tag: str,
    version: Version,
    *,
    expect: Precondition,
    reason: str,
    decision: GateDecision | None = None,
    back: bool = False,
) -> Tag:
    """The move itself. The caller holds the repository's lock and commits.

    A tag that a policy governs is moved by a decision, or where its guard finds that it was allowed: see
    `policies.guard.check_move`, also for `back`. Raises `tag-moved`, `tag-protected`, `tag-gated`.
    """
    row = store.tag(session, repo.id, tag)
    _check(session, repo, row, tag, expect)
    if decision is None and (row is None or row.version_id != version.id):
        holder = row.version_id if row is not None else None
        guard.check_move(session, principal, repo, tag, version, holder=holder, back=back)
    at = now()
    if row is None:
        generation = store.last_generation(session, repo.id, tag) + 1
        row = Tag(repository_id=repo.id, name=tag, version_id=version.id, generation=generation, updated_at=at)
        session.add(row)
        _log(session, principal, repo, tag, generation, None, version.id, reason, decision)
        session.flush()
        return row
    if row.version_id == version.id:
        return row
    before, generation = row.version_id, row.generation + 1
    if not store.swap_tag(session, row, version_id=version.id, at=at):
        session.refresh(row)
        raise _moved(session, repo, row)
    session.refresh(row)
    _log(session, principal, repo, tag, generation, before, version.id, reason, decision)
    return row


def _check(session: Session, repo: Repository, row: Tag | None, tag: str, expect: Precondition) -> None:
    if row is None:
        if expect.generation is not None:
            raise RegistryError("tag-moved", f"The tag {tag} is not there any more.")
        return
    if expect.absent or (expect.generation is not None and expect.generation != row.generation):
        raise _moved(session, repo, row)
    if row.protected and not expect.stated:
        raise RegistryError("tag-protected", f"The tag {tag} of {repo.namespace}/{repo.name} is protected.")


def _moved(session: Session, repo: Repository, row: Tag) -> RegistryError:
    view = _view(session, repo, row)
    return RegistryError(
        "tag-moved",
        f"The tag {row.name} points to v{view.version.number} now (generation {row.generation}).",
        current=view,
    )


def _existing(session: Session, repo: Repository, tag: str) -> Tag:
    row = store.tag(session, repo.id, tag)
    if row is None:
        raise RegistryError("not-found", f"{repo.namespace}/{repo.name} has no tag {tag[:128]!r}.")
    return row


def _view(session: Session, repo: Repository, row: Tag) -> TagView:
    return views.tag(repo, row, version_store.versions_by_id(session, [row.version_id])[row.version_id])


def _log(
    session: Session,
    principal: Principal,
    repo: Repository,
    tag: str,
    generation: int,
    before: int | None,
    after: int | None,
    reason: str,
    decision: GateDecision | None = None,
) -> None:
    session.add(
        TagMove(
            repository_id=repo.id,
            tag=tag,
            generation=generation,
            from_version_id=before,
            to_version_id=after,
            decision_id=decision.id if decision else None,
            reason=reason,
            author=principal.name,
            at=now(),
        )
    )
    audit.record(
        session,
        "tag-forced" if decision and decision.forced else "tag-moved" if after is not None else "tag-removed",
        principal=principal,
        namespace=repo.namespace,
        subject=f"{repo.namespace}/{repo.name}:{tag}",
        generation=generation,
        reason=reason,
        **({"decision": str(decision.id), "reports": list(decision.reports)} if decision else {}),
    )
