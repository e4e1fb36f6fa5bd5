"""The rooms of all mergeable PEFT types, as listed in the contract's table of types.

A room is imported on first use: a merge needs only those of its adapters' types, not forty modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Union

from lora_contract.adapter.types import TYPES
from lora_kernels.types.room import Room
from lora_kernels.types.updates import UpdateSpec

_FORMS: Final = ("kronecker", "low_rank", "replace", "rows", "scale", "scatter", "term")
"""Modules of `forms` that define an update."""

if TYPE_CHECKING:
    AnyUpdate = UpdateSpec
    """Any update of a plan, decoded from JSON by its tag; for mypy their common base class."""


class _Rooms(Mapping[str, Room]):
    def __init__(self) -> None:
        self._modules = {name: f"lora_kernels.types.{kind.room}" for name, kind in TYPES.items() if kind.room}

    def __getitem__(self, name: str) -> Room:
        room: Room = import_module(self._modules[name]).ROOM
        return room

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


ROOMS: Final[Mapping[str, Room]] = _Rooms()
"""PEFT type -> its room, in the order of the contract's table."""


def __getattr__(name: str) -> Any:
    if name != "AnyUpdate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    forms = [import_module(f"lora_kernels.types.forms.{form}") for form in _FORMS]
    updates = dict.fromkeys(
        value
        for module in forms
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, UpdateSpec) and value.__module__ == module.__name__
    )
    updates |= dict.fromkeys(update for room in ROOMS.values() for update in room.updates)
    globals()[name] = found = Union[tuple(updates)]
    return found
