"""Move tags by compare-and-swap, with full history. A tag always has a target; its history never forks."""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_registry.auth.principals import Principal
from lora_registry.blobs.damage import known
from lora_registry.db.tables import Repository, Tag, TagMove, Version
from lora_registry.events import audit
from lora_registry.keeping import store as kept
from lora_registry.policies import guard
from lora_registry.runtime.clock import now
from lora_registry.tags import store, views


@dataclass(frozen=True, slots=True)
class Precondition:
    """The state of a tag that a move requires.

    generation: the tag is at this one. absent: the tag does not exist. With neither, any state is accepted, unless
    the tag is protected.
    """

    generation: int | None = None
    absent: bool = False

    @property
    def is_conditional(self) -> bool:
        return self.absent or self.generation is not None


UNCONDITIONAL = Precondition()


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The gate's decision that moves a governed tag.

    reports: ids of the reports that it is based on. forced: an administrator overrode the policy.
    """

    id: int
    reports: tuple[str, ...]
    forced: bool = False


def set_tag(
    session: Session,
    principal: Principal,
    repo: Repository,
    tag: str,
    version: Version,
    *,
    expect: Precondition,
    reason: str,
    decision: GateDecision | None = None,
    is_rollback: bool = False,
) -> Tag:
    """Move a tag in the caller's transaction, which holds the repository's lock.

    Without a gate's decision, the policy that governs the tag must have allowed the version: see
    `policies.guard.check_move`, also for `is_rollback`. Raises `tag-moved`, `tag-protected`, `tag-gated`,
    `forbidden`, and `corrupt` if stored bytes of the version are known to be damaged or missing.
    """
    row = store.tag(session, repo.id, tag)
    check(session, principal, repo, row, tag, expect)
    if decision is None and (row is None or row.version_id != version.id):
        target = row.version_id if row is not None else None
        guard.check_move(session, principal, repo, tag, version, target=target, is_rollback=is_rollback)
    if (row is None or row.version_id != version.id) and (unsound := kept.unsound_file(session, version.id)):
        path, blob = unsound
        raise known(kept.place(blob), f"{path} of v{version.number}", blob.state)
    at = now()
    if row is None:
        generation = store.last_generation(session, repo.id, tag) + 1
        row = Tag(repository_id=repo.id, name=tag, version_id=version.id, generation=generation, updated_at=at)
        session.add(row)
        log(session, principal, repo, tag, generation, None, version.id, reason, decision)
        session.flush()
        return row
    if row.version_id == version.id:
        return row
    before, generation = row.version_id, row.generation + 1
    if not store.swap_tag(session, row, version_id=version.id, at=at):
        session.refresh(row)
        raise _moved(session, repo, row)
    session.refresh(row)
    log(session, principal, repo, tag, generation, before, version.id, reason, decision)
    return row


def check(
    session: Session, principal: Principal, repo: Repository, row: Tag | None, tag: str, expect: Precondition
) -> None:
    """Raise `forbidden` if the tag is protected and the caller no maintainer, `tag-moved` or `tag-protected` if the tag
    does not meet the precondition."""
    if row is None:
        if expect.generation is not None:
            raise RegistryError("tag-moved", f"The tag {tag} no longer exists.")
        return
    if row.protected and not principal.may("maintainer", repo.namespace):
        raise RegistryError(
            "forbidden",
            f"The tag {tag} of {repo.label} is protected, so moving it requires the role maintainer.",
        )
    if expect.absent or (expect.generation is not None and expect.generation != row.generation):
        raise _moved(session, repo, row)
    if row.protected and not expect.is_conditional:
        raise RegistryError("tag-protected", f"The tag {tag} of {repo.label} is protected.")


def _moved(session: Session, repo: Repository, row: Tag) -> RegistryError:
    view = views.current(session, repo, row)
    return RegistryError(
        "tag-moved",
        f"The tag {row.name} now points to v{view.version.number} (generation {row.generation}).",
        current=view,
    )


def log(
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
    """Add a move to the tag's history and to the audit log. before, after: version ids."""
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
        subject=f"{repo.label}:{tag}",
        generation=generation,
        reason=reason,
        **({"decision": str(decision.id), "reports": list(decision.reports)} if decision else {}),
    )
