"""A room: everything about merging one PEFT type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lora_contract.adapter.sorting import ModuleTensors
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.view import View
from lora_kernels.types.updates import UpdateSpec

Matcher: TypeAlias = Callable[[View, Sequence[ModuleTensors]], Matches]


@dataclass(frozen=True)
class Page:
    """The room's row in docs/merging-types.md.

    Args:
        title: the type, or the types that share the room.
        weight: what happens to the weight.
        reach: on which elements of the weight an element of the result depends.
        on: the supported layers.
        source: the PEFT code that computes the same.
    """

    title: str
    weight: str
    reach: str
    on: str
    source: str


@dataclass(frozen=True)
class Room:
    """match: returns the changes by the type's tensors, which are sorted by module and nesting. updates: the update
    classes that are not defined in `forms`. page: None for LORA, which has its own section."""

    match: Matcher
    updates: tuple[type[UpdateSpec], ...] = ()
    page: Page | None = None
