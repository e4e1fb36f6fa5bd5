"""A room: what the project knows of merging one PEFT type."""

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
        reach: how far an element of the result depends on others.
        on: the layers that it is for.
        source: where PEFT computes the same.
    """

    title: str
    weight: str
    reach: str
    on: str
    source: str


@dataclass(frozen=True)
class Room:
    """match: the changes that the type's tensors make, which come sorted by module and nesting. updates: the kinds of
    updates among them that no module of `forms` defines. page: None for LORA, which has a section of its own."""

    match: Matcher
    updates: tuple[type[UpdateSpec], ...] = ()
    page: Page | None = None
