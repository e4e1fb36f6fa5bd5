"""Trainable tokens: rows of an embedding that the adapter replaces, alone (TRAINABLE_TOKENS) or together with LoRA.

Merge rules are those of peft 0.21.2 (`TrainableTokensLayer.merge`, `TrainableTokensWrapper`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_contract.adapter.sorting import ModuleTensors
from lora_contract.tensors import TensorEntry
from lora_kernels.types.forms.rows import ReplacedRows
from lora_kernels.types.matching.change import Change, Matches
from lora_kernels.types.matching.view import View, factor, rejected, shape, split_tied
from lora_kernels.types.room import Page, Room

SUFFIX: Final = "token_adapter.trainable_tokens_delta"
_OWN_SUFFIX: Final = "trainable_tokens_delta"


def match(view: View, groups: Sequence[ModuleTensors]) -> Matches:
    """TRAINABLE_TOKENS. Raises as `match_adapter` does."""
    found: Matches = []
    single, head = split_tied(view, groups)
    for group in single:
        found += match_rows(view, group, _OWN_SUFFIX, head)
    return found


def match_rows(view: View, group: ModuleTensors, suffix: str, head: ModuleTensors | None = None) -> Matches:
    """The rows of one embedding; if it is tied, also those of the output layer, as in PEFT.

    head: the tensors of that layer, which are copies of the embedding's.
    """
    entry = group.tensors[suffix]
    others = sorted(set(group.tensors) - {suffix})
    if others:
        other = group.tensors[others[0]]
        raise rejected(f"{other.name} adapts {group.path}, which has trainable tokens; PEFT allows only one", other)
    _, weight = view.module(group.path, entry, "embedding", "linear")
    indices = _indices(view, group.path, entry)
    if len(weight.shape) != 2 or entry.shape != (len(indices), weight.shape[1]):
        raise rejected(
            f"{entry.name} has the shape {shape(entry)}; expected {len(indices)} rows of {weight.name} "
            f"({shape(weight)})",
            entry,
        )
    if indices and max(indices) >= weight.shape[0]:
        raise rejected(f"{entry.name} replaces row {max(indices)}, but {weight.name} has {weight.shape[0]} rows", entry)
    rows = factor(entry)
    change = Change(weight.name, group.path, ReplacedRows(rows, tuple(indices)), view.adapter.weight)
    return view.with_tied(change, [(rows, head.tensors[suffix])] if head is not None else [])


def _indices(view: View, module: str, entry: TensorEntry) -> list[int]:
    tokens = view.config.trainable_tokens
    if isinstance(tokens, dict):
        named = [rows for name, rows in tokens.items() if module == name or module.endswith(f".{name}")]
        tokens = named[0] if named else None
    if tokens is None:
        raise rejected(f"{entry.name} has token rows, but adapter_config.json has no tokens for {module}", entry)
    return tokens


ROOM = Room(
    match,
    page=Page(
        "trainable tokens",
        "rows replaced; with a weight, interpolated towards the stored rows",
        "element",
        "embeddings",
        "`TrainableTokensLayer.merge`",
    ),
)
