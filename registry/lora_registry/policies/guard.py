"""Guard of every tag move: the policy that governs the tag, and whether it allowed the version."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_contract.policy import Policy, governing
from lora_contract.validation import DatasetRole
from lora_registry.auth.principals import Principal
from lora_registry.db.scope import Scope
from lora_registry.db.tables import DecisionRow, Repository, Version
from lora_registry.jobs import enqueue
from lora_registry.jobs import store as job_store
from lora_registry.policies import store
from lora_registry.policies.datasets import EvaluationSets, evaluation_sets, validation_key
from lora_registry.repositories import resolve
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import now

DAY: Final = 24 * 3600 * 1_000_000
"""In microseconds."""


@dataclass(frozen=True, slots=True)
class GoverningPolicy:
    """The policy of a tag, with its pattern."""

    pattern: str
    digest: str
    policy: Policy


def policy_of(session: Session, path: RepositoryPath, tag: str) -> GoverningPolicy | None:
    """Return the most specific policy that matches a tag; None if none matches."""
    documents = {
        row.pattern: (row.digest, row.body)
        for row in store.current_policies(session, Scope((path.namespace,)))
        if row.digest is not None and row.body is not None
    }
    pattern = governing(documents, path.namespace, path.name, tag)
    if pattern is None:
        return None
    digest, body = documents[pattern]
    return GoverningPolicy(pattern, digest, decoding.decode(body, Policy))


def check_move(
    session: Session,
    principal: Principal,
    repo: Repository,
    tag: str,
    version: Version,
    *,
    target: int | None,
    is_rollback: bool,
) -> None:
    """Check a move of an adapter's tag without a gate's decision.

    A stored decision counts if it allowed the version under the current policy, compared with the current target, on
    the evaluation sets that the policy names now, from a report of the current suite. Raises `tag-gated` if a policy
    governs the tag and no decision counts.

    Args:
        target: id of the tag's current target; None for a new tag.
        is_rollback: a rollback may also go to a version to which an allowing decision once moved the tag.
    """
    if repo.kind != "adapter":
        return
    store.lock_policies(session)
    found = policy_of(session, RepositoryPath(repo.namespace, repo.name), tag)
    if found is None:
        return
    policy = found.policy
    if is_rollback and store.was_promoted(session, repo.id, tag, version.id):
        return
    base = resolve.base_of(session, repo, version)
    decisions = store.allowing_decisions(
        session, version_id=version.id, tag=tag, policy_digest=found.digest, holder_version_id=target
    )
    if decisions:
        required = evaluation_sets(session, principal, policy, is_stored=True)
        if any(_still_holds(session, decision, version, base, policy, required) for decision in decisions):
            return
    raise RegistryError(
        "tag-gated",
        f"The policy {policy.name!r} of {found.pattern} governs {repo.label}:{tag} and has not "
        f"allowed v{version.number} under current conditions.",
    )


def _still_holds(
    session: Session,
    decision: DecisionRow,
    version: Version,
    base: Version,
    policy: Policy,
    required: EvaluationSets,
) -> bool:
    sets: dict[DatasetRole, list[str]] = json.loads(decision.sets)
    if any(not set(digests) <= set(sets[role]) for role, digests in required.digests().items()):
        return False
    key = validation_key(version, base, policy.precision, sets)
    if decision.report_id != enqueue.validation_job_id(version, key):
        return False  # from an older suite
    report = job_store.report(session, decision.report_id)
    return report is not None and (policy.fresh_days is None or now() - report.created_at <= policy.fresh_days * DAY)
