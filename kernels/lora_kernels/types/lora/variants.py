"""Tensors and options besides a pair A, B: magnitudes, a bias, blocks of a factor, training state.

Merge rules are those of peft 0.21.2.
"""

from __future__ import annotations

from typing import Final

from lora_contract.adapter.lora import TRAINING_ONLY
from lora_contract.adapter.scaling import ModuleScale
from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.base import BaseTensor
from lora_contract.modules import BaseModule
from lora_contract.tensors import TensorEntry
from lora_kernels.types.forms.term import AddedTerm
from lora_kernels.types.matching.change import Change, Matches
from lora_kernels.types.matching.view import View, factor, rejected, shape, unsupported

_MAGNITUDES: Final = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
_BIAS: Final = "lora_B.bias"


def check_rest(view: View, group: ModuleTensors, used: set[str]) -> None:
    """Check that the other tensors of a pair are a bias, or training state without an effect, which is ignored."""
    ignored = {suffix for option, found in TRAINING_ONLY.items() if view.config.on(option) for suffix in found}
    for suffix, entry in group.tensors.items():
        if suffix in ignored:
            view.ignored.append(entry.name)
        elif entry.name not in used and suffix != _BIAS:
            raise rejected(f"{entry.name} is unexpected among the tensors of {group.path}", entry)


def magnitude(view: View, group: ModuleTensors, weight: BaseTensor, *, transposed: bool) -> TensorEntry | None:
    """The DoRA magnitudes, one per output; None if the module has none."""
    found = next((group.tensors[suffix] for suffix in _MAGNITUDES if suffix in group.tensors), None)
    if found is None:
        if view.config.use_dora:
            raise rejected(f"{group.path} has no lora_magnitude_vector, although use_dora is set", group.first)
        return None
    if not view.config.use_dora:
        raise rejected(f"{found.name} belongs to DoRA, but adapter_config.json does not set use_dora", found)
    outputs = weight.shape[1] if transposed else weight.shape[0]
    if found.elements != outputs or max(found.shape, default=0) != outputs:
        raise rejected(f"{found.name} has the shape {shape(found)}; {weight.name} has {outputs} outputs", found)
    return found


def bias(view: View, group: ModuleTensors, found: BaseModule, scale: ModuleScale) -> Matches:
    """lora_bias: bias + s * lora_B.bias."""
    entry = group.tensors.get(_BIAS)
    if entry is None:
        if view.config.lora_bias and "lora_embedding_A" not in group.tensors:
            raise rejected(f"{group.path} has no {_BIAS}, although lora_bias is set", group.first)
        return []
    if not view.config.lora_bias:
        raise rejected(f"{entry.name} belongs to lora_bias, which adapter_config.json does not set", entry)
    if found.kind == "mha":
        unsupported("lora_bias on packed attention", group.path, "PEFT trains that bias but never adds it")
    stored = view.modules.parameters.get(f"{found.path}.bias")
    if stored is None:
        raise rejected(
            f"{entry.name} adds to the bias of {group.path}, which the base does not have; a model of its architecture "
            "would not load one",
            entry,
        )
    if stored.shape != entry.shape:
        raise rejected(f"{entry.name} has the shape {shape(entry)}, but {stored.name} has {shape(stored)}", entry)
    return [Change(stored.name, group.path, AddedTerm(factor(entry), view.scaled(scale.scale)))]


def block_diagonal(view: View, group: ModuleTensors, found: BaseModule, scale: ModuleScale) -> dict[str, int]:
    """BD-LoRA: the block-diagonal factor of the module, A or B, and its number of blocks; empty if neither is.

    PEFT searches each of its patterns anywhere in the last segment of the module path (`BdLoraLinearVariant.init`).
    """
    options = view.config.raw.get("use_bdlora")
    if not options or found.kind != "linear":
        return {}
    if view.config.use_dora or view.config.lora_bias or not isinstance(options, dict):
        unsupported("BD-LoRA together with other variants", group.path)
    count = options.get("nblocks", 1)
    name = group.path.rpartition(".")[2]
    halves = [half for half in "AB" if _named(name, options.get(f"target_modules_bd_{half.lower()}"))]
    if type(count) is not int or count < 1 or len(halves) > 1:
        raise rejected(
            f"adapter_config.json has use_bdlora with nblocks {str(count)[:40]} and {len(halves)} patterns for {name}, "
            "expected a positive integer and at most one",
            group.first,
        )
    if not halves or count == 1:
        return {}
    split = group.tensors[f"lora_{halves[0]}.weight"]
    if len(split.shape) != 2 or split.shape[0] % count or scale.r % count:
        raise rejected(f"{split.name} {shape(split)} cannot be split into {count} blocks at rank {scale.r}", split)
    return {halves[0]: count}


def _named(name: str, patterns: object) -> bool:
    return isinstance(patterns, list) and any(isinstance(pattern, str) and pattern in name for pattern in patterns)
