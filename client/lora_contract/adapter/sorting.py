"""Sorting of an adapter's tensors by their names: tensors of a module, of the whole model, and others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

from lora_contract.adapter.names import PREFIX, global_name, split_suffix
from lora_contract.adapter.types import TYPES
from lora_contract.tensors import Header, TensorEntry


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
    modules: dict[tuple[str, int], ModuleTensors] = {}
    found = SortedTensors()
    for entry in sorted(header.tensors, key=lambda tensor: tensor.name):
        place = place_of(entry.name, peft_type)
        if place == "shared":
            found.shared[entry.name.removeprefix("base_model.")] = entry
        elif place == "other":
            found.others.append(entry)
        else:
            key = place.path, place.nested
            modules.setdefault(key, ModuleTensors(*key, {})).tensors[place.suffix] = entry
    found.modules.extend(modules[key] for key in sorted(modules))
    return found
