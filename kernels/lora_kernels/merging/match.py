"""Matching of an adapter's tensors to the base tensors that they change.

Each tensor in the file is matched, ignored for a stated reason, or reported by name in an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from lora_contract.adapter.lora import changes_base
from lora_contract.adapter.sorting import sort_tensors
from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModules
from lora_kernels.checkpoint.folders import AdapterInput
from lora_kernels.merging.base_copies import Copy
from lora_kernels.merging.saved import SavedMatcher
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.tied import Tie, refuse_shared
from lora_kernels.types.matching.view import View, rejected
from lora_kernels.types.refused import not_possible
from lora_kernels.types.room import Room
from lora_kernels.types.table import ROOMS

_CONVERT: Final = (
    "Convert it to plain LoRA (PEFT: path_initial_model_for_weight_conversion) and merge the result, or serve it "
    "unmerged with PEFT."
)


@dataclass(frozen=True)
class Matched:
    """ignored: names of the adapter's tensors that copy base weights or other tensors of the adapter. copies: those
    whose values are to be compared with their originals."""

    changes: Matches
    ignored: tuple[str, ...] = ()
    copies: tuple[Copy, ...] = ()


def match_adapter(
    index: int, adapter: AdapterInput, *, base: BaseFingerprint, modules: BaseModules, tie: Tie | None
) -> Matched:
    """Match every tensor of an adapter.

    Args:
        index: of the adapter in the merge, for messages.
        tie: the base's tied embedding and output layer; each counts as having its own weight.

    Raises as `plan_merge` does.
    """
    if not math.isfinite(adapter.weight):
        raise RegistryError(
            "invalid-request", f"The weight of adapter {index + 1} is {adapter.weight}; expected a finite number."
        )
    room = _room(adapter)
    tensors = sort_tensors(adapter.config.peft_type, adapter.header)
    view = View(adapter, base, modules, tensors.shared, tie)
    changes = room.match(view, tensors.modules)
    saved = SavedMatcher(view, tensors.others)
    for entry in tensors.others:
        changes += saved.match(entry)
    _check_complete(view, changes)
    refuse_shared(changes, base, modules, tie)
    return Matched(changes, tuple(sorted(view.ignored)), tuple(saved.copies))


def _check_complete(view: View, changes: Matches) -> None:
    """Raise RegistryError `rejected` for a tensor that the merge does not use."""
    used = {known.name for change in changes for known in change.update.factors}.union(view.ignored)
    for entry in sorted(view.adapter.header.tensors, key=lambda tensor: tensor.name):
        if entry.name not in used:
            raise rejected(
                f"{entry.name} is not used by an adapter of type {view.config.peft_type} with this config; the merge "
                "would omit it",
                entry,
            )


def _room(adapter: AdapterInput) -> Room:
    config = adapter.config
    room = ROOMS.get(config.peft_type)
    if room is None:
        raise not_possible(config.peft_type)
    changed = changes_base(config) if config.peft_type == "LORA" else None
    if changed is not None:
        raise RegistryError(
            "unsupported",
            f"The adapter was trained with {changed}, which changes the base weights when training starts; its tensors "
            "are not an update of the stored base.",
            hint=_CONVERT if changed != "kasa_config" else "Serve it unmerged with PEFT, which repeats that change.",
            type=changed,
        )
    return room
