"""What governs a tag: its policy, the evaluation sets it asks for, and the guard that every move of a tag passes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.policy import Policy, governing
from lora_contract.validation import Precision, Role, ValidationKey, usual_precision
from lora_registry.auth.principals import Principal
from lora_registry.catalog import gate_store, resolve, store
from lora_registry.db.tables import DecisionRow, PolicyRow, Repository, Version
from lora_registry.jobs import enqueue
from lora_registry.runtime.clock import now

MAX_SETS: Final = 64
DAY: Final = 24 * 3600 * 1_000_000
"""Microseconds."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An evaluation set as it is meant now. name: as a policy or the caller calls it; label: `namespace/name:vN`.
    answers: it asks for answers and not for losses."""

    version: Version
    name: str
    label: str
    answers: bool


@dataclass(frozen=True, slots=True)
class Sets:
    """Evaluation sets by their role and their digests."""

    by_role: dict[Role, dict[str, Chosen]]

    def key(self, version: Version, base: Version, precision: Precision | None) -> ValidationKey:
        """The identity of a validation of a version on these sets. precision None: by the size of the base."""
        return _key(version, base, precision, self.digests())

    def digests(self) -> dict[Role, list[str]]:
        return {role: sorted(chosen) for role, chosen in self.by_role.items()}

    def names(self, role: Role) -> dict[str, str]:
        """By digest, as a policy or the caller calls them."""
        return {digest: chosen.name for digest, chosen in self.by_role[role].items()}


def policy_of(session: Session, namespace: str, name: str, tag: str) -> tuple[PolicyRow, Policy] | None:
    """The explicit policy of a tag, the most specific of those that match; None where none does."""
    rows = {row.pattern: row for row in gate_store.present_policies(session, [namespace, "*"]) if row.body is not None}
    pattern = governing(rows, namespace, name, tag)
    if pattern is None:
        return None
    row = rows[pattern]
    return row, msgspec.json.decode(row.body or b"", type=Policy)


def evaluation_sets(
    session: Session, principal: Principal, policy: Policy, data: Iterable[str] = (), general: Iterable[str] = ()
) -> Sets:
    """The sets of a policy and of the caller, resolved to versions. A ceiling is asked of its set, which is one too.

    The policy's own references come first, since its ceilings go by them. Raises `not-found`, `conflict`, `deleted`.
    """
    ceilings = _choose(session, principal, policy.quality.highest)
    if len(ceilings) < len(policy.quality.highest):
        raise RegistryError("conflict", "The policy gives two ceilings for what is one version of an evaluation set.")
    asked = {**_choose(session, principal, [*policy.quality.sets, *policy.behaviour.sets, *data]), **ceilings}
    forgetting = _choose(session, principal, [*policy.forgetting.sets, *general])
    if len(asked) + len(forgetting) > MAX_SETS:
        raise RegistryError("too-large", f"At most {MAX_SETS} evaluation sets are asked for at once.")
    behaviour = {digest: chosen for digest, chosen in asked.items() if chosen.answers}
    if wrong := [chosen.name for chosen in (*forgetting.values(), *ceilings.values()) if chosen.answers]:
        raise RegistryError("conflict", f"{wrong[0]} holds expected answers, which have no loss.")
    quality = {digest: chosen for digest, chosen in asked.items() if not chosen.answers}
    return Sets({"quality": quality, "forgetting": forgetting, "behaviour": behaviour})


def guard(
    session: Session,
    principal: Principal,
    repo: Repository,
    tag: str,
    version: Version,
    *,
    holder: int | None,
    back: bool,
) -> None:
    """A move of an adapter's tag without a gate. Raises `tag-gated` where a policy governs it and did not allow that.

    It did where a decision says so under the present policy, beside the present holder (None: the tag is new), on the
    evaluation sets that the policy names now, from a report of the present suite. back: a rollback, which may also go
    where an allowing decision once moved the tag.
    """
    if repo.kind != "adapter":
        return
    gate_store.hold_policies(session)
    found = policy_of(session, repo.namespace, repo.name, tag)
    if found is None:
        return
    row, policy = found
    if back and gate_store.moved_by_allowance(session, repo.id, tag, version.id):
        return
    base = base_of(session, repo, version)
    decisions = gate_store.allowing(
        session, version_id=version.id, tag=tag, policy_digest=row.digest or "", holder_version_id=holder
    )
    if decisions:
        asked = evaluation_sets(session, principal, policy)
        if any(_holds(session, decision, version, base, policy, asked) for decision in decisions):
            return
    raise RegistryError(
        "tag-gated",
        f"The policy {policy.name!r} of {row.pattern} governs {repo.namespace}/{repo.name}:{tag}, and it has not "
        f"allowed v{version.number} as things stand.",
    )


def _holds(
    session: Session, decision: DecisionRow, version: Version, base: Version, policy: Policy, asked: Sets
) -> bool:
    sets: dict[Role, list[str]] = json.loads(decision.sets)
    if any(not set(wanted) <= set(sets[role]) for role, wanted in asked.digests().items()):
        return False
    key = _key(version, base, policy.precision, sets)
    if decision.report_id != enqueue.validation_job_id(version, key):
        return False  # of an older suite
    report = gate_store.report(session, decision.report_id)
    return report is not None and (policy.fresh_days is None or now() - report.created_at <= policy.fresh_days * DAY)


def _key(
    version: Version, base: Version, precision: Precision | None, sets: Mapping[Role, Sequence[str]]
) -> ValidationKey:
    quality, forgetting, behaviour = (tuple(sets[role]) for role in ("quality", "forgetting", "behaviour"))
    return ValidationKey(
        version=version.digest,
        base=base.digest,
        quality=quality,
        forgetting=forgetting,
        behaviour=behaviour,
        precision=precision or usual_precision(base.size),
    )


def _choose(session: Session, principal: Principal, texts: Iterable[str]) -> dict[str, Chosen]:
    found: dict[str, Chosen] = {}
    for text in dict.fromkeys(texts):
        if len(found) > MAX_SETS:
            break  # refused with the rest
        repo, version = resolve.by_text(session, principal, text)
        if repo.kind != "dataset":
            raise RegistryError("conflict", f"{text} is of kind {repo.kind}; expected a dataset.")
        answers = json.loads(version.facts or "{}").get("form") == "answers"
        label = f"{repo.namespace}/{repo.name}:v{version.number}"
        found.setdefault(version.digest, Chosen(version, text, label, answers))
    return found


def base_of(session: Session, repo: Repository, version: Version) -> Version:
    """The base that an adapter pins. Raises `conflict` for what is no adapter."""
    if repo.kind != "adapter" or version.base_version_id is None:
        raise RegistryError(
            "conflict",
            f"{repo.namespace}/{repo.name} is of kind {repo.kind}; adapters alone are validated.",
        )
    return store.versions_by_id(session, [version.base_version_id])[version.base_version_id]
