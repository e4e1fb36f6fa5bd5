"""Which tensor of an adapter does what to which tensor of the base.

The tensors in the file are the authority: every one of them is matched, ignored for a stated reason, or an error that
names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lora_contract.adapter.lora import changes_base
from lora_contract.adapter.names import PREFIX, global_name, split_suffix
from lora_contract.adapter.types import TYPES
from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModules
from lora_contract.tensors import TensorEntry
from lora_kernels.checkpoint.folders import AdapterInput
from lora_kernels.merging.match import (
    adalora,
    beft,
    boft,
    c3a,
    deft,
    delora,
    fourierft,
    glora,
    gralora,
    hira,
    hra,
    ia3,
    ln_tuning,
    loha,
    lokr,
    lora,
    miss,
    oft,
    peanut,
    randlora,
    road,
    sparse,
    tinylora,
    tokens,
    unilora,
    vblora,
    vera,
)
from lora_kernels.merging.match.reasons import not_possible
from lora_kernels.merging.match.saved import Saved
from lora_kernels.merging.match.tied import Tie
from lora_kernels.merging.match.view import Group, Matches, View, rejected

Matcher = Callable[[View, Sequence[Group]], Matches]

# PEFT type -> its matcher. Groups come sorted by module and nesting.
MATCHERS: Final[Mapping[str, Matcher]] = {
    "ADALORA": adalora.match,
    "BEFT": beft.match,
    "BOFT": boft.match,
    "BONE": miss.match,
    "C3A": c3a.match,
    "DEFT": deft.match,
    "DELORA": delora.match,
    "FOURIERFT": fourierft.match,
    "GLORA": glora.match,
    "GRALORA": gralora.match,
    "HIRA": hira.match,
    "HRA": hra.match,
    "IA3": ia3.match,
    "LN_TUNING": ln_tuning.match,
    "LOHA": loha.match,
    "LOKR": lokr.match,
    "LORA": lora.match,
    "MISS": miss.match,
    "OFT": oft.match,
    "PEANUT": peanut.match,
    "PVERA": vera.match,
    "RANDLORA": randlora.match,
    "ROAD": road.match,
    "SHIRA": sparse.match_shira,
    "SUPERTUNING": sparse.match_supertuning,
    "TINYLORA": tinylora.match,
    "TRAINABLE_TOKENS": tokens.match,
    "UNILORA": unilora.match,
    "VBLORA": vblora.match,
    "VERA": vera.match,
    "WAVEFT": sparse.match_waveft,
}

_CONVERT: Final = (
    "Save it converted to plain LoRA (PEFT: path_initial_model_for_weight_conversion) and merge that, or serve it "
    "unmerged with PEFT."
)


@dataclass(frozen=True)
class Matched:
    """ignored: names of the adapter's tensors that are copies, of base weights or of others of its own."""

    deltas: Matches
    ignored: tuple[str, ...] = ()


def match_adapter(
    index: int, adapter: AdapterInput, *, base: BaseFingerprint, modules: BaseModules, tie: Tie | None
) -> Matched:
    """Match every tensor of an adapter. index: of the adapter in the merge. tie: of the base's output layer, whose
    weight counts as one of its own. Raises as `plan_merge` does."""
    if not math.isfinite(adapter.weight):
        raise RegistryError(
            "invalid-request", f"The weight of adapter {index + 1} is {adapter.weight}; expected a finite number."
        )
    matcher = _matcher(adapter)
    groups, shared, others = _grouped(adapter)
    view = View(index, adapter, base, modules, shared, tie)
    deltas = matcher(view, groups)
    saved = Saved(view, others)
    for entry in others:
        deltas += saved.match(entry)
    _check_complete(view, deltas)
    return Matched(deltas, tuple(sorted(view.ignored)))


def _check_complete(view: View, deltas: Matches) -> None:
    """Raises RegistryError `rejected` where a tensor has no part in the merge."""
    used = {known.name for _, delta in deltas for known in delta.factors.values()}.union(view.ignored)
    for entry in sorted(view.adapter.header.tensors, key=lambda tensor: tensor.name):
        if entry.name not in used:
            raise rejected(
                f"{entry.name} has no part in what an adapter of type {view.config.peft_type} with this config does "
                f"to the base; it would be left out",
                entry,
            )


def _matcher(adapter: AdapterInput) -> Matcher:
    config = adapter.config
    matcher = MATCHERS.get(config.peft_type)
    if matcher is None:
        raise not_possible(config.peft_type)
    changed = changes_base(config) if config.peft_type == "LORA" else None
    if changed is not None:
        raise RegistryError(
            "unsupported",
            f"The adapter was trained with {changed}, which changes the base weights when training starts; its tensors "
            "are not an update of the base as it is stored.",
            hint=_CONVERT if changed != "kasa_config" else "Serve it unmerged with PEFT, which changes the base again.",
            type=changed,
        )
    return matcher


def _grouped(adapter: AdapterInput) -> tuple[list[Group], dict[str, TensorEntry], list[TensorEntry]]:
    """The type's own tensors by module, its model-level ones by name, and all others, each in order of names."""
    kind = TYPES[adapter.config.peft_type]
    groups: dict[tuple[str, int], Group] = {}
    shared, others = {}, []
    for entry in sorted(adapter.header.tensors, key=lambda tensor: tensor.name):
        if global_name(entry.name, kind):
            shared[entry.name.removeprefix("base_model.")] = entry
            continue
        rest = entry.name.removeprefix(PREFIX)
        split = split_suffix(rest, adapter.config.peft_type, kind)
        if split is None:
            others.append(entry)
            continue
        module, nested, suffix = split
        groups.setdefault((module, nested), Group(module, nested)).tensors[suffix] = entry
    return [groups[key] for key in sorted(groups)], shared, others
