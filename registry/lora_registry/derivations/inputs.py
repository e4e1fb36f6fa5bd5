"""Inputs of a derived version: resolve references to versions, and adapters to the base that they pin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.recipe import RecipeInput
from lora_contract.wire.operations import WeightedAdapter
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import Version
from lora_registry.repositories import resolve, store

MAX_ADAPTERS: Final = 64


@dataclass(frozen=True, slots=True)
class Adapters:
    """Adapters of one base. title: the references as given. mentions: each with the id of its version."""

    base: Version
    inputs: tuple[RecipeInput, ...]
    ids: tuple[int, ...]
    title: str
    mentions: tuple[tuple[int, str], ...]


def adapters(session: Session, principal: Principal, items: Sequence[WeightedAdapter]) -> Adapters:
    """Pin every adapter by digest. Raises `conflict` if one is not an adapter or their bases differ."""
    if not 0 < len(items) <= MAX_ADAPTERS:
        raise RegistryError("invalid-request", f"Expected 1 to {MAX_ADAPTERS} adapters, not {len(items)}.")
    pins: dict[str, str] = {}
    bases: dict[str, Version] = {}
    inputs, ids = [], []
    for item in items:
        if not math.isfinite(item.weight):
            raise RegistryError(
                "invalid-request", f"The weight of {item.adapter} is {item.weight}; expected a finite number."
            )
        repo, version = resolve.by_text(session, principal, item.adapter)
        if repo.kind != "adapter" or version.base_version_id is None:
            raise RegistryError("conflict", f"{item.adapter} is of kind {repo.kind}; expected an adapter.")
        base = store.versions_by_id(session, [version.base_version_id])[version.base_version_id]
        pins.setdefault(base.digest, f"{repo.label}:v{version.number}")
        bases.setdefault(base.digest, base)
        inputs.append(RecipeInput(digest=version.digest, weight=item.weight))
        ids.append(version.id)
    if len(pins) > 1:
        raise RegistryError(
            "conflict",
            f"{' and '.join(pins.values())} were made for different base versions.",
            hint="Use adapters of one base.",
        )
    names = [item.adapter for item in items]
    mentions = tuple(zip(ids, names, strict=True))
    return Adapters(next(iter(bases.values())), tuple(inputs), tuple(ids), " + ".join(names), mentions)
