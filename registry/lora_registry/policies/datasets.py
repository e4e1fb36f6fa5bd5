"""Evaluation sets: references of a policy and of a caller, resolved to versions of datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract import reference
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.policy import Policy
from lora_contract.validation import DatasetRole, Precision, ValidationKey, default_precision
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import may_read
from lora_registry.db.tables import Version
from lora_registry.repositories import resolve

MAX_SETS: Final = 64


@dataclass(frozen=True, slots=True)
class ResolvedDataset:
    """A reference resolved to a version of a dataset.

    Args:
        name: as the policy or the caller wrote it.
        label: `namespace/name:vN`.
        answers: True if the dataset has expected answers, and so no loss.
    """

    version: Version
    name: str
    label: str
    namespace: str
    answers: bool


@dataclass(frozen=True, slots=True)
class EvaluationSets:
    """Evaluation sets by role, then by digest."""

    by_role: dict[DatasetRole, dict[str, ResolvedDataset]]

    def key(self, version: Version, base: Version, precision: Precision | None) -> ValidationKey:
        """Return the key of a validation of a version on these sets."""
        return validation_key(version, base, precision, self.digests())

    def digests(self) -> dict[DatasetRole, list[str]]:
        return {role: sorted(found) for role, found in self.by_role.items()}

    def names(self, role: DatasetRole, *, hidden: Set[str] = frozenset()) -> dict[str, str]:
        """Map digests to names, as the policy or the caller wrote them.

        hidden: namespaces; their sets are called by their digest.
        """
        return {
            digest: Digest.parse(digest).short if found.namespace in hidden else found.name
            for digest, found in self.by_role[role].items()
        }

    def namespaces(self) -> set[str]:
        return {found.namespace for sets in self.by_role.values() for found in sets.values()}

    def versions(self) -> list[Version]:
        return [found.version for sets in self.by_role.values() for found in sets.values()]


def evaluation_sets(
    session: Session,
    principal: Principal,
    policy: Policy,
    data: Iterable[str] = (),
    general: Iterable[str] = (),
    *,
    is_stored: bool = False,
) -> EvaluationSets:
    """Resolve the sets of a policy and of the caller. A set with a ceiling is always evaluated.

    The policy's own references come first, since its ceilings refer to them. Raises `not-found`, `conflict`, `deleted`.

    Args:
        is_stored: the policy is one in force, so it may name what the caller may not read.
    """
    if is_stored:
        _require_readable(session, principal, policy)
    ceilings = _resolve(session, principal, policy.quality.highest)
    if len(ceilings) < len(policy.quality.highest):
        raise RegistryError("conflict", "The policy gives two ceilings for the same version of an evaluation set.")
    requested = {**_resolve(session, principal, [*policy.quality.sets, *policy.behaviour.sets, *data]), **ceilings}
    forgetting = _resolve(session, principal, [*policy.forgetting.sets, *general])
    if len(requested) + len(forgetting) > MAX_SETS:
        raise RegistryError("too-large", f"The request needs more than {MAX_SETS} evaluation sets.")
    behaviour = {digest: found for digest, found in requested.items() if found.answers}
    if without_loss := [found.name for found in (*forgetting.values(), *ceilings.values()) if found.answers]:
        raise RegistryError("conflict", f"{without_loss[0]} has expected answers, which have no loss.")
    quality = {digest: found for digest, found in requested.items() if not found.answers}
    return EvaluationSets({"quality": quality, "forgetting": forgetting, "behaviour": behaviour})


def named_sets(policy: Policy) -> list[str]:
    """Return the references to evaluation sets in a policy."""
    return [*policy.quality.sets, *policy.quality.highest, *policy.forgetting.sets, *policy.behaviour.sets]


def hidden_sets(session: Session, principal: Principal, policies: Iterable[Policy]) -> set[str]:
    """Return the references of policies that lead into namespaces which the caller may not read."""
    named = {text: _namespace(text) for policy in policies for text in named_sets(policy)}
    hidden = {namespace for namespace in named.values() if not may_read(session, principal, namespace)}
    return {text for text, namespace in named.items() if namespace in hidden}


def _namespace(text: str) -> str:
    return reference.parse(text).with_namespace(reference.DEFAULT_NAMESPACE).namespace or ""


def _require_readable(session: Session, principal: Principal, policy: Policy) -> None:
    if hidden_sets(session, principal, [policy]):
        raise RegistryError(
            "not-found",
            f"The policy {policy.name!r} names an evaluation set that you may not read.",
            hint="Ask who set the policy for read access, for instance by an internal namespace.",
        )


def validation_key(
    version: Version, base: Version, precision: Precision | None, sets: Mapping[DatasetRole, Sequence[str]]
) -> ValidationKey:
    """precision: None: the default for a base of this size. sets: digests by role."""
    quality, forgetting, behaviour = (tuple(sets[role]) for role in ("quality", "forgetting", "behaviour"))
    return ValidationKey(
        version=version.digest,
        base=base.digest,
        quality=quality,
        forgetting=forgetting,
        behaviour=behaviour,
        precision=precision or default_precision(base.size),
    )


def _resolve(session: Session, principal: Principal, texts: Iterable[str]) -> dict[str, ResolvedDataset]:
    """Map digests to datasets. Stops after MAX_SETS: the caller refuses the request then."""
    found: dict[str, ResolvedDataset] = {}
    for text in dict.fromkeys(texts):
        if len(found) > MAX_SETS:
            break
        repo, version = resolve.by_text(session, principal, text)
        if repo.kind != "dataset":
            raise RegistryError("conflict", f"{text} is of kind {repo.kind}; expected a dataset.")
        answers = json.loads(version.facts or "{}").get("form") == "answers"
        label = f"{repo.label}:v{version.number}"
        found.setdefault(version.digest, ResolvedDataset(version, text, label, repo.namespace, answers))
    return found
