"""Modules that an adapter saves whole, and the names that PEFT gives their tensors. Read from peft 0.21.2."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal, NamedTuple

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.types import TYPES

OWN_HEADS: Final = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Heads that PEFT adds to modules_to_save by itself, by task. Of several names a model has one."""

Wrapper = Literal["base_layer", "modules_to_save", "original_module"]
_WRAPPERS: Final[tuple[Wrapper, ...]] = ("original_module", "modules_to_save", "base_layer")
_NOTHING_SAVED: Final = frozenset({"ADAPTION_PROMPT", "TRAINABLE_TOKENS", "XLORA"})


class SavedName(NamedTuple):
    """The name of a parameter as the base has it, and PEFT's wrapper of its module that the full name contains.

    wrapper: `original_module` and `base_layer` hold the base's own module, `modules_to_save` a second copy of the saved
    one, which PEFT does not load; None for the saved tensor itself.
    """

    name: str
    wrapper: Wrapper | None


def unwrapped(rest: str) -> SavedName:
    """Split a name without PREFIX."""
    for wrapper in _WRAPPERS:
        if f".{wrapper}." in rest:
            return SavedName(rest.replace(f".{wrapper}.", "."), wrapper)
    return SavedName(rest, None)


def saves_modules(peft_type: str) -> bool:
    """Whether adapters of the type hold saved modules beside tensors of modules of the base."""
    return not TYPES[peft_type].prompt and peft_type not in _NOTHING_SAVED


def saved_modules(config: AdapterConfig) -> tuple[str, ...]:
    """The modules that PEFT saves: those of modules_to_save, and the heads that it adds by itself."""
    if not saves_modules(config.peft_type):
        return tuple(config.modules_to_save)
    return tuple(dict.fromkeys((*config.modules_to_save, *OWN_HEADS.get(config.task_type or "", ()))))


def is_saved(module: str, names: Collection[str]) -> bool:
    """Whether a module or one of its parents is saved. PEFT compares the ends of paths, so "norm" also saves every
    input_layernorm."""
    ends = tuple(names)
    while ends and module:
        if module.endswith(ends):
            return True
        module = module.rpartition(".")[0]
    return False
