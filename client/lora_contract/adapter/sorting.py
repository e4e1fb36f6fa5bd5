"""Sorting of an adapter's tensors by their names: tensors of a module, of the whole model, and others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Literal, NamedTuple

import msgspec

from lora_contract.adapter.names import PREFIX, global_name, split_suffix
from lora_contract.adapter.types import TYPES
from lora_contract.tensors import Header, TensorEntry

_NAME: Final = attrgetter("name")


class ModuleTensors(msgspec.Struct):
    """The tensors of one adapted module, by suffix (`lora_A.weight`).

    path: of the module in the base. nested: number of `base_layer` components between path and suffix.
    """

    path: str
    nested: int = 0
    tensors: dict[str, TensorEntry] = {}

    @property
    def first(self) -> TensorEntry:
        return self.tensors[min(self.tensors)]


@dataclass(frozen=True)
class SortedTensors:
    """The tensors of a file by class.

    Args:
        modules: in order of path and nesting.
        shared: tensors of the whole model by name without `base_model.`, in order of names.
        others: tensors that the type does not define (saved modules, biases, copies), in order of names.
    """

    modules: list[ModuleTensors] = field(default_factory=list)
    shared: dict[str, TensorEntry] = field(default_factory=dict)
    others: list[TensorEntry] = field(default_factory=list)


class OwnTensor(NamedTuple):
    """A parsed name of a module's tensor: path of the module, number of `base_layer` after it, and suffix."""

    path: str
    nested: int
    suffix: str


def place_of(name: str, peft_type: str) -> OwnTensor | Literal["shared", "other"]:
    """Classify a name: of a module, of the whole model, or not defined by the type."""
    kind = TYPES[peft_type]
    if global_name(name, kind):
        return "shared"
    split = split_suffix(name.removeprefix(PREFIX), peft_type, kind)
    return OwnTensor(*split) if split is not None else "other"


def sort_tensors(peft_type: str, header: Header) -> SortedTensors:
    """Sort every tensor of a file of this type."""
    found = SortedTensors(list(modules_in(peft_type, header)))
    for entry in sorted(header.tensors, key=_NAME):
        place = place_of(entry.name, peft_type)
        if place == "shared":
            found.shared[entry.name.removeprefix("base_model.")] = entry
        elif place == "other":
            found.others.append(entry)
    return found


def modules_in(peft_type: str, header: Header) -> Iterator[ModuleTensors]:
    """Yield the modules that a file of this type adapts, in order of path and nesting, one at a time: all of them at
    once take three times the memory of the header."""
    entries = sorted(header.tensors, key=_NAME)
    entries.sort(key=lambda entry: _module_order(place_of(entry.name, peft_type)))
    module: ModuleTensors | None = None
    for entry in entries:
        place = place_of(entry.name, peft_type)
        if not isinstance(place, OwnTensor):
            continue
        if module is None or module.path != place.path or module.nested != place.nested:
            if module is not None:
                yield module
            module = ModuleTensors(place.path, place.nested, {})
        module.tensors[place.suffix] = entry
    if module is not None:
        yield module


def _module_order(place: OwnTensor | Literal["shared", "other"]) -> str:
    """A text that sorts as path and nesting do: no name has the character NUL."""
    return f"{place.path}\0{place.nested}" if isinstance(place, OwnTensor) else ""
