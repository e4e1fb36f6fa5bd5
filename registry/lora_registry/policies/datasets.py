"""Evaluation sets: references of a policy and of a caller, resolved to versions of datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.policy import Policy
from lora_contract.validation import DatasetRole, Precision, ValidationKey, default_precision
from lora_registry.auth.principals import Principal
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

    def names(self, role: DatasetRole) -> dict[str, str]:
        """Map digests to names, as the policy or the caller wrote them."""
        return {digest: found.name for digest, found in self.by_role[role].items()}

    def versions(self) -> list[Version]:
        return [found.version for sets in self.by_role.values() for found in sets.values()]


def evaluation_sets(
    session: Session, principal: Principal, policy: Policy, data: Iterable[str] = (), general: Iterable[str] = ()
) -> EvaluationSets:
    """Resolve the sets of a policy and of the caller. A set with a ceiling is always evaluated.

    The policy's own references come first, since its ceilings refer to them. Raises `not-found`, `conflict`, `deleted`.
    """
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
        label = f"{repo.namespace}/{repo.name}:v{version.number}"
        found.setdefault(version.digest, ResolvedDataset(version, text, label, answers))
    return found
