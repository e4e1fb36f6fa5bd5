"""The weight that a module's tensors change, and checks that matchers of all types share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from lora_contract.base import BaseTensor
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.records import Factor
from lora_kernels.merging.delta import Delta
from lora_kernels.merging.match.view import Group, View, factor, rejected, shape, unsupported

# Of indices, as PEFT stores them.
_INTEGERS: Final = ("U8", "I16", "I32", "I64")

Factors = Mapping[str, TensorEntry | Factor]


class Target(NamedTuple):
    """A weight seen as a linear map, `out` x `in_`; a convolution's kernel is counted into `in_`. transposed: it is
    stored (in, out). bias: None where the module has none."""

    path: str
    weight: BaseTensor
    out: int
    in_: int
    kernel: int
    transposed: bool
    bias: BaseTensor | None


def target(view: View, group: Group, *kinds: str, conv1d: bool = False) -> Target:
    """The weight of a group's module. kinds: that the type adapts in PEFT; conv1d: so does it layers that store
    (in, out). Raises as `View.module` does."""
    if group.nested:
        unsupported(f"{view.config.peft_type} on top of another adapter", group.module)
    found, weight = view.module(group.module, group.first, *kinds)
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    if found.transposed and not conv1d:
        unsupported(f"{view.config.peft_type} on a layer that stores (in, out)", found.path)
    if view.config.fan_in_fan_out and not view.stores_transposed:
        # PEFT saves this flag only where it met layers that store (in, out).
        unsupported(
            f"{view.config.peft_type} with fan_in_fan_out on a base of type {view.base.model_type or 'unknown'}",
            found.path,
        )
    out, in_ = (columns, rows) if found.transposed else (rows, columns)
    bias = view.modules.parameters.get(f"{weight.name.removesuffix('weight')}bias") if found.has_bias else None
    return Target(group.module, weight, out, in_, math.prod(weight.shape[2:]), found.transposed, bias)


def needed(group: Group, *suffixes: str) -> tuple[TensorEntry, ...]:
    """The group's tensors of these suffixes. Raises RegistryError `rejected` where one is missing."""
    for suffix in suffixes:
        if suffix not in group.tensors:
            present = group.first
            raise rejected(f"{present.name} has no {suffix} beside it; half an update cannot be merged", present)
    return tuple(group.tensors[suffix] for suffix in suffixes)


def shaped(entry: TensorEntry, *expected: int) -> TensorEntry:
    """Raises RegistryError `rejected` where the tensor has another shape."""
    if entry.shape != expected:
        wanted = " x ".join(map(str, expected))
        raise rejected(f"{entry.name} has the shape {shape(entry)}; {wanted} fits the module and its other half", entry)
    return entry


def number(view: View, entry: TensorEntry, key: str, default: float) -> float:
    """A number of adapter_config.json. Raises RegistryError `rejected`, naming the tensor it is for."""
    value = view.config.raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise rejected(f"adapter_config.json has {key} = {str(value)[:40]} for {entry.name}", entry)
    return float(value)


def added(view: View, found: Target, kind: str, factors: Factors, **how: Any) -> tuple[str, Delta]:
    """An additive update of the module's weight. how: `scale`, and the options of the kind; those that are None or
    False are left out."""
    scale = how.pop("scale", 1.0)
    return found.weight.name, Delta(
        adapter=view.index,
        kind=kind,
        module=found.path,
        factors=_factors(factors),
        scale=scale * view.adapter.weight,
        options=_options(how),
    )


def changed(
    view: View, found: Target, kind: str, factors: Factors, *, bias: bool = False, **options: Any
) -> tuple[str, Delta]:
    """A transform of the module's weight, or of its bias."""
    tensor = found.bias if bias and found.bias is not None else found.weight
    return tensor.name, Delta(
        adapter=view.index,
        kind=kind,
        module=found.path,
        factors=_factors(factors),
        weight=view.adapter.weight,
        options=_options(options),
    )


def places(entry: TensorEntry) -> Factor:
    """A tensor of indices. Raises RegistryError `rejected` where it holds no whole numbers."""
    if entry.dtype not in _INTEGERS:
        raise rejected(f"{entry.name} has the type {entry.dtype}; expected one of {', '.join(_INTEGERS)}", entry)
    return Factor(entry.name, entry.dtype, entry.shape, entry.file_start, entry.file_end)


def _factors(entries: Factors) -> dict[str, Factor]:
    return {name: entry if isinstance(entry, Factor) else factor(entry) for name, entry in entries.items()}


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value is not False}
