"""The weight that a module's tensors change, and checks shared by all matchers."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.base import BaseTensor
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.types.matching.change import Change
from lora_kernels.types.matching.view import View, rejected, shape, unsupported
from lora_kernels.types.updates import UpdateSpec

# Dtypes of indices in PEFT.
_INTEGERS: Final = ("U8", "I16", "I32", "I64")


class Target(NamedTuple):
    """A weight as a linear map, `out` x `in_`; `in_` includes a convolution's kernel. transposed: it is stored (in,
    out). bias: None if the module has none."""

    path: str
    weight: BaseTensor
    out: int
    in_: int
    kernel: int
    transposed: bool
    bias: BaseTensor | None


def target(view: View, group: ModuleTensors, *kinds: str, conv1d: bool = False) -> Target:
    """The weight of a group's module. kinds: kinds of modules that the type adapts in PEFT. conv1d: it also adapts
    layers that store (in, out). Raises as `View.module` does."""
    if group.nested:
        unsupported(f"{view.config.peft_type} on top of another adapter", group.path)
    found, weight = view.module(group.path, group.first, *kinds)
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    if found.transposed and not conv1d:
        unsupported(f"{view.config.peft_type} on a layer that stores (in, out)", found.path)
    if view.config.fan_in_fan_out and not view.stores_transposed:
        # PEFT saves this flag only if it adapted layers that store (in, out).
        unsupported(
            f"{view.config.peft_type} with fan_in_fan_out on a base of type {view.base.model_type or 'unknown'}",
            found.path,
        )
    out, in_ = (columns, rows) if found.transposed else (rows, columns)
    bias = view.modules.parameters.get(f"{weight.name.removesuffix('weight')}bias") if found.has_bias else None
    return Target(group.path, weight, out, in_, math.prod(weight.shape[2:]), found.transposed, bias)


def needed(group: ModuleTensors, *suffixes: str) -> tuple[TensorEntry, ...]:
    """The group's tensors of these suffixes. Raises RegistryError `rejected` if one is missing."""
    for suffix in suffixes:
        if suffix not in group.tensors:
            present = group.first
            raise rejected(f"{present.name} has no matching {suffix}; half an update cannot be merged", present)
    return tuple(group.tensors[suffix] for suffix in suffixes)


def shaped(entry: TensorEntry, *expected: int) -> TensorEntry:
    """The same tensor. Raises RegistryError `rejected` if it has another shape."""
    if entry.shape != expected:
        wanted = " x ".join(map(str, expected))
        raise rejected(f"{entry.name} has the shape {shape(entry)}; the module needs {wanted}", entry)
    return entry


def number(view: View, entry: TensorEntry, key: str, default: float) -> float:
    """A number of adapter_config.json. Raises RegistryError `rejected`, naming the tensor that needs it."""
    value = view.config.raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise rejected(f"adapter_config.json has {key} = {str(value)[:40]} for {entry.name}", entry)
    return float(value)


def change(view: View, to: Target, update: UpdateSpec) -> Change:
    """A change of the module's weight. Additive updates have the adapter's weight in their scale."""
    return Change(to.weight.name, to.path, update, view.adapter.weight)


def bias_change(view: View, to: Target, bias: BaseTensor, update: UpdateSpec) -> Change:
    """A change of the module's bias."""
    return Change(bias.name, to.path, update, view.adapter.weight)


def index_factor(entry: TensorEntry) -> Factor:
    """The record of a tensor of indices. Raises RegistryError `rejected` unless it has an integer dtype."""
    if entry.dtype not in _INTEGERS:
        raise rejected(f"{entry.name} has the dtype {entry.dtype}; expected one of {', '.join(_INTEGERS)}", entry)
    return Factor.of(entry)
