"""The tensors of an adapter file, sorted into modules with factors, and extras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.lora import changes_base
from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.patterns import names_module
from lora_contract.adapter.saved import saved_modules, unwrapped
from lora_contract.adapter.sorting import sort_tensors
from lora_contract.errors import RegistryError
from lora_contract.modules import is_embedding_name, is_output_name
from lora_contract.tensors import FLOAT_DTYPES, Header, TensorEntry
from lora_kernels.checkpoint.records import Factor

SUPPORTED: Final = frozenset({"LORA", "ADALORA", "LOHA", "LOKR"})

# Options and tensors with which the update is not scale * B @ A of the tensors in the file.
_OPTIONS: Final = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with lora_bias",
    "kasa_config": "KaSA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "layer_replication": "LoRA with layer_replication",
    "target_parameters": "LoRA on expert parameters",
    "trainable_token_indices": "trainable tokens",
}
_TENSORS: Final = {
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.weight": "DoRA",
    "lora_B.bias": "LoRA with lora_bias",
    "lora_diag": "KaSA",
    "token_adapter.trainable_tokens_delta": "trainable tokens",
}


@dataclass(frozen=True)
class Extra:
    """A tensor that is not a factor.

    kind: `saved`, a module of modules_to_save that replaces the base's; `bias`, a trained bias; `copy`, the base's own
    weight, which PEFT stores with adapted embeddings. module: its path in the base.
    """

    kind: Literal["saved", "bias", "copy"]
    module: str
    factor: Factor


@dataclass(frozen=True)
class Contents:
    """modules: path -> its tensors by suffix, sorted by path."""

    modules: Mapping[str, Mapping[str, TensorEntry]]
    extras: tuple[Extra, ...]


def contents(config: AdapterConfig, header: Header) -> Contents:
    """Sort all tensors. Raises RegistryError `unsupported`, naming the type, for adapters that are not low-rank updates
    of the base as it is stored; `rejected` for a tensor that belongs to no module."""
    _refuse_types(config)
    tensors = sort_tensors(config.peft_type, header)
    for group in tensors.modules:
        if group.nested:
            refuse("LoRA on expert parameters", group.path)
        for suffix in sorted(group.tensors):
            if suffix in _TENSORS:
                refuse(_TENSORS[suffix], group.path)
            if config.peft_type == "LORA" and suffix in ("lora_A", "lora_B"):
                refuse("LoRA on packed attention", group.path)
    saved = names_module(saved_modules(config))
    extras = [_extra(config, entry, saved) for entry in tensors.others]
    return Contents({group.path: group.tensors for group in tensors.modules}, tuple(extras))


def factor(entry: TensorEntry) -> Factor:
    """The record of a tensor. Raises RegistryError `rejected` unless it is floating-point."""
    if entry.dtype not in FLOAT_DTYPES:
        raise rejected(
            f"{entry.name} has the dtype {entry.dtype}; expected one of {', '.join(sorted(FLOAT_DTYPES))}", entry
        )
    return Factor.of(entry)


def rejected(what: str, entry: TensorEntry) -> RegistryError:
    return RegistryError(
        "rejected",
        f"{what}.",
        hint="Save the adapter again; `lora-reg push --dry-run` lists all faults of a folder.",
        tensor=entry.name,
    )


def refuse(name: str, module: str | None = None) -> NoReturn:
    where = f"; the adapter uses it for {module}" if module is not None else ""
    raise RegistryError(
        "unsupported",
        f"{name} is not a plain low-rank update B A, which this operation requires{where}.",
        hint="Merge the adapter into the base, extract a plain LoRA from the result and use that.",
        type=name,
    )


def _refuse_types(config: AdapterConfig) -> None:
    if config.peft_type not in SUPPORTED:
        refuse(config.peft_type)
    for option, name in _OPTIONS.items():
        if config.on(option):
            refuse(name)
    changed = changes_base(config)
    if changed is not None:
        raise RegistryError(
            "unsupported",
            f"The adapter was trained with {changed}, which changes the base weights when training starts; its factors "
            "are not an update of the base as it is stored.",
            hint="Convert the adapter to plain LoRA (PEFT: path_initial_model_for_weight_conversion) and use that.",
            type=changed,
        )


def _extra(config: AdapterConfig, entry: TensorEntry, saved: Callable[[str], bool]) -> Extra:
    name, wrapper = unwrapped(entry.name.removeprefix(PREFIX))
    module, _, leaf = name.rpartition(".")
    if config.bias != "none" and leaf == "bias":
        return Extra("bias", module, factor(entry))
    if wrapper is not None:
        return Extra("copy", module, factor(entry))
    inner = module
    while inner:  # modules_to_save may name a container, which is saved with its children
        if saved(inner):
            return Extra("saved", module, factor(entry))
        inner = inner.rpartition(".")[0]
    if leaf == "weight" and (is_embedding_name(module) or is_output_name(module)):
        return Extra("copy", module, factor(entry))
    raise rejected(
        f"{entry.name} is not a tensor of a {config.peft_type} adapter and its module is not in modules_to_save; "
        "it would overwrite the base",
        entry,
    )
