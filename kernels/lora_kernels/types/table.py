"""The rooms of all PEFT types that are merged, as the contract's table of types names them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final, Union

from lora_contract.adapter.types import TYPES
from lora_kernels.types.forms.kronecker import KroneckerProduct
from lora_kernels.types.forms.low_rank import LowRankProduct
from lora_kernels.types.forms.replace import Replacement
from lora_kernels.types.forms.rows import ReplacedRows
from lora_kernels.types.forms.scale import Scaled
from lora_kernels.types.forms.scatter import Scattered
from lora_kernels.types.forms.term import AddedTerm
from lora_kernels.types.room import Room
from lora_kernels.types.updates import UpdateSpec

FORMS: Final[tuple[type[UpdateSpec], ...]] = (
    AddedTerm,
    KroneckerProduct,
    LowRankProduct,
    ReplacedRows,
    Replacement,
    Scaled,
    Scattered,
)


def _room(name: str) -> Room:
    room: Room = import_module(f"lora_kernels.types.{name}").ROOM
    return room


ROOMS: Final[Mapping[str, Room]] = {name: _room(kind.room) for name, kind in TYPES.items() if kind.room is not None}
"""PEFT type -> its room, in the order of the contract's table."""

# A plan that was written as JSON is read by the tags of all updates; mypy knows what they have in common.
if TYPE_CHECKING:
    AnyUpdate = UpdateSpec
else:
    AnyUpdate = Union[tuple(dict.fromkeys((*FORMS, *(update for room in ROOMS.values() for update in room.updates))))]
