"""What a gate judges: a version, the tag it asks for, who holds that now, the policy and the evaluation sets.

All is resolved to digests in one transaction, so that what is decided and what then moves are the same things.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlmodel import Session

from lora_contract import reference
from lora_contract.adapter.facts import AdapterFacts
from lora_contract.errors import RegistryError
from lora_contract.policy import DEFAULT, Decision, GateFacts, Policy, decide
from lora_contract.signing import parse_public_key
from lora_contract.validation import ValidationKey, parse_validation
from lora_registry.auth.principals import Principal
from lora_registry.catalog import gate_store, governing, resolve, signatures, store
from lora_registry.catalog.governing import Sets
from lora_registry.db.tables import Report, Repository, Tag, Version
from lora_registry.gates import policies
from lora_registry.jobs import enqueue
from lora_registry.runtime.clock import now


@dataclass(frozen=True, slots=True)
class Wanted:
    """A validation by what it depends on."""

    version: Version
    base: Version
    key: ValidationKey

    @property
    def job_id(self) -> str:
        return enqueue.validation_job_id(self.version, self.key)


@dataclass(frozen=True, slots=True)
class Case:
    """row: of the tag; None where it is new. holder: the version it points to, where that is another one.
    pattern: of the policy; None: the default one, or one that is only tried."""

    repo: Repository
    version: Version
    base: Version
    tag: str
    row: Tag | None
    holder: Version | None
    pattern: str | None
    policy: Policy
    policy_digest: str
    sets: Sets
    own: Wanted
    other: Wanted | None

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return (self.own,) if self.other is None else (self.own, self.other)


@dataclass(frozen=True, slots=True)
class Judged:
    """reports: those there are, the version's own first. missing: validations that nobody has run."""

    decision: Decision
    own: Report | None
    reports: tuple[str, ...]
    missing: tuple[Wanted, ...]


def open_case(
    session: Session,
    principal: Principal,
    namespace: str,
    name: str,
    *,
    selector: str,
    tag: str,
    data: Sequence[str],
    document: dict[str, Any] | None = None,
    lock: bool = False,
) -> Case:
    """Resolve a question to a gate. document: a policy to try instead of the tag's own.

    Raises `not-found`, `deleted`, `invalid-reference`, `invalid-request`, `conflict` for what is no adapter.
    """
    reference.check_tag(tag)
    repo = resolve.repository(session, principal, namespace, name, lock=lock)
    version = resolve.in_repository(session, repo, selector)
    base = governing.base_of(session, repo, version)
    gate_store.hold_policies(session)
    policy, digest, pattern = DEFAULT, str(DEFAULT.digest), None
    found = governing.policy_of(session, namespace, name, tag) if document is None else None
    if document is not None:
        policy = policies.read(document)
        digest = str(policy.digest)
    elif found is not None:
        row, policy = found
        digest, pattern = row.digest or "", row.pattern
    sets = governing.evaluation_sets(session, principal, policy, data)
    tagged = store.tag(session, repo.id, tag)
    holder = None
    if tagged is not None and tagged.version_id != version.id:
        holder = store.versions_by_id(session, [tagged.version_id])[tagged.version_id]
    other = None
    if holder is not None:
        below = governing.base_of(session, repo, holder)
        other = Wanted(holder, below, sets.key(holder, below, policy.precision))
    own = Wanted(version, base, sets.key(version, base, policy.precision))
    return Case(repo, version, base, tag, tagged, holder, pattern, policy, digest, sets, own, other)


def judge(session: Session, case: Case, approvals: Sequence[tuple[str, str]]) -> Judged:
    """Decide from what is stored. approvals: name and role."""
    rows = [gate_store.report(session, wanted.job_id) for wanted in case.wanted]
    own = rows[0]
    theirs = rows[1] if case.other is not None else None
    facts = GateFacts(
        report=None if own is None else parse_validation(own.body.encode()),
        holder=None if theirs is None else parse_validation(theirs.body.encode()),
        held=case.holder is not None,
        quality=case.sets.names("quality"),
        forgetting=case.sets.names("forgetting"),
        behaviour=case.sets.names("behaviour"),
        adapter=None if case.version.facts is None else msgspec.convert(json.loads(case.version.facts), AdapterFacts),
        meta=json.loads(case.version.meta),
        approvals=list(approvals),
        signers=signatures.signers(
            session, case.repo, case.version, [parse_public_key(key) for key in case.policy.signatures.keys]
        ),
        age=0.0 if own is None else (now() - own.created_at) / 1e6,
    )
    return Judged(
        decide(case.policy, facts),
        own,
        tuple(row.id for row in rows if row is not None),
        tuple(wanted for wanted, row in zip(case.wanted, rows, strict=True) if row is None),
    )


def need_weights(session: Session, wanted: Sequence[Wanted]) -> None:
    """Raises `unsupported` where a base that something has to run on is known by its fingerprint alone."""
    for one in wanted:
        base = one.base
        if base.weights_absent:
            repo = store.repositories_by_id(session, [base.repository_id])[base.repository_id]
            raise RegistryError(
                "unsupported",
                f"{repo.namespace}/{repo.name}:v{base.number} was registered without its weights, so nothing can be "
                "run on it here.",
                hint="Add the base with its weights and push the adapter against that version.",
            )
