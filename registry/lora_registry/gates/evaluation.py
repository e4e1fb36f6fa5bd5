"""The inputs of a gate's decision: a version, the tag, the tag's policy, current target and evaluation sets.

All are resolved to digests in one transaction, so the versions that are evaluated are the versions that move.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlmodel import Session

from lora_contract import decoding, reference
from lora_contract.adapter.facts import AdapterFacts
from lora_contract.errors import RegistryError
from lora_contract.pipelines import LIBRARY as DIFFUSERS
from lora_contract.policy import DEFAULT, Decision, GateFacts, Policy, decide
from lora_contract.signing import parse_public_key
from lora_contract.validation import ValidationKey, parse_validation
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import narrower
from lora_registry.bases import weights
from lora_registry.db.tables import ReportRow, Repository, Tag, Version
from lora_registry.gates import store
from lora_registry.gates.approvals import of_others
from lora_registry.jobs import enqueue
from lora_registry.jobs import store as job_store
from lora_registry.policies import guard
from lora_registry.policies import service as policies
from lora_registry.policies import store as policy_store
from lora_registry.policies.datasets import EvaluationSets, evaluation_sets
from lora_registry.repositories import resolve
from lora_registry.repositories import store as version_store
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.repositories.resolve import Readable
from lora_registry.runtime.clock import now
from lora_registry.settings import ServiceSettings
from lora_registry.signatures import service as signatures
from lora_registry.tags import store as tag_store


@dataclass(frozen=True, slots=True)
class RequiredValidation:
    """A validation, identified by what it depends on."""

    version: Version
    base: Version
    key: ValidationKey

    @property
    def job_id(self) -> str:
        return enqueue.validation_job_id(self.version, self.key)


@dataclass(frozen=True, slots=True)
class GateQuestion:
    """A gate request, unresolved. document: a policy to test instead of the tag's own."""

    selector: str
    tag: str
    data: Sequence[str]
    document: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class GateInputs:
    """The versions, policy and evaluation sets of a decision.

    Args:
        row: of the tag; None for a new tag.
        target: the tag's current target; None if that is `version` itself or the tag is new.
        pattern: of the policy; None for the default policy and for one that is only tested.
        own: the validation of `version`.
        other: the validation of `target`, to compare with.
        hidden: namespaces of evaluation sets that not everybody may read who may read the repository.
    """

    repo: Repository
    version: Version
    base: Version
    tag: str
    row: Tag | None
    target: Version | None
    pattern: str | None
    policy: Policy
    policy_digest: str
    sets: EvaluationSets
    own: RequiredValidation
    other: RequiredValidation | None
    hidden: frozenset[str]

    @property
    def required(self) -> tuple[RequiredValidation, ...]:
        return (self.own,) if self.other is None else (self.own, self.other)


@dataclass(frozen=True, slots=True)
class GateOutcome:
    """A decision for the caller.

    Args:
        stored: the same decision in the words that are stored, which name no hidden evaluation set.
        reports: ids of the existing reports, the version's own first.
        missing: validations without a report.
    """

    decision: Decision
    stored: Decision
    own: ReportRow | None
    reports: tuple[str, ...]
    missing: tuple[RequiredValidation, ...]


def resolve_inputs(
    session: Session,
    principal: Principal,
    path: RepositoryPath,
    question: GateQuestion,
    *,
    lock: bool = False,
) -> GateInputs:
    """Resolve a gate request. lock: lock the repository until the end of the transaction.

    Raises `not-found`, `deleted`, `invalid-reference`, `invalid-request`, and `conflict` if it is not an adapter.
    """
    tag, document = question.tag, question.document
    reference.check_tag(tag)
    repo = resolve.repository(session, principal, path, lock=lock)
    version = resolve.in_repository(session, Readable(repo), question.selector)
    base = resolve.base_of(session, repo, version)
    policy_store.lock_policies(session)
    policy, digest, pattern = DEFAULT, str(DEFAULT.digest), None
    found = guard.policy_of(session, path, tag) if document is None else None
    if document is not None:
        policy = policies.read(document)
        digest = str(policy.digest)
    elif found is not None:
        policy, digest, pattern = found.policy, found.digest, found.pattern
    sets = evaluation_sets(session, principal, policy, question.data, is_stored=found is not None)
    tagged = tag_store.tag(session, repo.id, tag)
    target = None
    if tagged is not None and tagged.version_id != version.id:
        target = version_store.versions_by_id(session, [tagged.version_id])[tagged.version_id]
    other = None
    if target is not None:
        target_base = resolve.base_of(session, repo, target)
        other = RequiredValidation(target, target_base, sets.key(target, target_base, policy.precision))
    own = RequiredValidation(version, base, sets.key(version, base, policy.precision))
    # Without login there is nobody to hide a name from.
    hidden = frozenset() if principal.anonymous else narrower(session, sets.namespaces(), repo.namespace)
    return GateInputs(repo, version, base, tag, tagged, target, pattern, policy, digest, sets, own, other, hidden)


def evaluate(session: Session, inputs: GateInputs, promoter: str) -> GateOutcome:
    """Decide from the stored reports. promoter: user whose own approval does not count."""
    rows = [job_store.report(session, required.job_id) for required in inputs.required]
    own = rows[0]
    other = rows[1] if inputs.other is not None else None
    facts = GateFacts(
        report=None if own is None else parse_validation(own.body.encode()),
        target=None if other is None else parse_validation(other.body.encode()),
        has_target=inputs.target is not None,
        **_names(inputs.sets, frozenset()),
        adapter=None
        if inputs.version.facts is None
        else decoding.convert(json.loads(inputs.version.facts), AdapterFacts),
        meta=json.loads(inputs.version.meta),
        approvals=of_others(store.approvals(session, inputs.version.id, inputs.tag), promoter),
        signers=signatures.signers(
            session, inputs.repo, inputs.version, [parse_public_key(key) for key in inputs.policy.signatures.keys]
        ),
        age=0.0 if own is None else (now() - own.created_at) / 1e6,
    )
    decision = decide(inputs.policy, facts)
    without_names = msgspec.structs.replace(facts, **_names(inputs.sets, inputs.hidden))
    return GateOutcome(
        decision,
        decide(inputs.policy, without_names) if inputs.hidden else decision,
        own,
        tuple(row.id for row in rows if row is not None),
        tuple(required for required, row in zip(inputs.required, rows, strict=True) if row is None),
    )


def _names(sets: EvaluationSets, hidden: Set[str]) -> dict[str, dict[str, str]]:
    return {role: sets.names(role, hidden=hidden) for role in sets.by_role}


def require_measurable(session: Session, settings: ServiceSettings, required: Sequence[RequiredValidation]) -> None:
    """Raise `unsupported` if a validation cannot run: the base is no language model, or its weights cannot be had."""
    for base in (validation.base for validation in required):
        facts = {} if base.facts is None else json.loads(base.facts)
        if facts.get("library") == DIFFUSERS:
            repo = version_store.repositories_by_id(session, [base.repository_id])[base.repository_id]
            raise RegistryError(
                "unsupported",
                f"{repo.label}:v{base.number} is a diffusion model ({facts['architecture']}): a validation measures "
                "losses on texts, which it does not have.",
                hint="Move the tag without a gate, with `lora-reg tag`; a protected one with `promote --force`.",
            )
        weights.require(
            session,
            settings,
            base,
            hint="Add the base with its weights and push the adapter with that base version.",
        )
