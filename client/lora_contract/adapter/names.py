"""Tensor names: `base_model.model.` + module path + suffix, or a model-level name."""

from __future__ import annotations

from typing import Final

from lora_contract.adapter import lora
from lora_contract.adapter.slots import AdapterType

PREFIX: Final = "base_model.model."
_MAX_NESTING: Final = 8


def global_name(name: str, kind: AdapterType) -> bool:
    """Whether a name is that of a model-level tensor of the type."""
    plain = name if kind.prompt else name.removeprefix("base_model.")
    if not kind.prompt and plain == name:
        return False
    return any(
        plain.startswith(known[:-1]) and len(plain) > len(known) - 1 if known.endswith(".*") else plain == known
        for known in kind.globals_
    )


def split_suffix(rest: str, peft_type: str, kind: AdapterType) -> tuple[str, int, str] | None:
    """Split a name without PREFIX into (module path, number of `base_layer` after it, suffix); None if it does not end
    in a suffix of the type."""
    found = _by_prefix(rest, kind.prefix) if kind.prefix else _by_list(rest, _suffixes(peft_type, kind))
    if found is None:
        return None
    path, suffix = found
    nested = 0
    while path.endswith(".base_layer") and nested < _MAX_NESTING:
        path = path.removesuffix(".base_layer")
        nested += 1
    # The out_proj of an attention that is adapted as a whole.
    return path.replace(".base_layer.", ".", 1), nested, suffix


def leaf_of(name: str) -> str:
    return name.rpartition(".")[2]


def _suffixes(peft_type: str, kind: AdapterType) -> tuple[str, ...]:
    return lora.SUFFIXES if peft_type == "LORA" else tuple(slot.suffix for slot in kind.slots)


def _by_list(rest: str, suffixes: tuple[str, ...]) -> tuple[str, str] | None:
    for suffix in suffixes:
        if rest.endswith(f".{suffix}"):
            return rest[: -len(suffix) - 1], suffix
    return None


def _by_prefix(rest: str, prefix: str) -> tuple[str, str] | None:
    parts = rest.split(".")
    for index, part in enumerate(parts):
        if index and part.startswith(prefix):
            return ".".join(parts[:index]), ".".join(parts[index:])
    return None
