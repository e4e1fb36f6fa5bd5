"""Which tensor of an adapter does what to which tensor of the base.

The tensors in the file are the authority: every one of them is matched, ignored for a stated reason, or an error that
names it.
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
from lora_kernels.merging.saved import SavedMatcher
from lora_kernels.types.matching.change import Matches
from lora_kernels.types.matching.tied import Tie, refuse_shared
from lora_kernels.types.matching.view import View, rejected
from lora_kernels.types.refused import not_possible
from lora_kernels.types.room import Room
from lora_kernels.types.table import ROOMS

_CONVERT: Final = (
    "Save it converted to plain LoRA (PEFT: path_initial_model_for_weight_conversion) and merge that, or serve it "
    "unmerged with PEFT."
)


@dataclass(frozen=True)
class Matched:
    """ignored: names of the adapter's tensors that are copies, of base weights or of others of its own."""

    changes: Matches
    ignored: tuple[str, ...] = ()


def match_adapter(
    index: int, adapter: AdapterInput, *, base: BaseFingerprint, modules: BaseModules, tie: Tie | None
) -> Matched:
    """Match every tensor of an adapter.

    Args:
        index: of the adapter in the merge, for messages.
        tie: of the base's output layer, whose weight counts as one of its own.

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
    return Matched(changes, tuple(sorted(view.ignored)))


def _check_complete(view: View, changes: Matches) -> None:
    """Raises RegistryError `rejected` for a tensor that has no part in the merge."""
    used = {known.name for change in changes for known in change.update.factors}.union(view.ignored)
    for entry in sorted(view.adapter.header.tensors, key=lambda tensor: tensor.name):
        if entry.name not in used:
            raise rejected(
                f"{entry.name} has no part in what an adapter of type {view.config.peft_type} with this config does "
                f"to the base; it would be left out",
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
            "are not an update of the base as it is stored.",
            hint=_CONVERT if changed != "kasa_config" else "Serve it unmerged with PEFT, which changes the base again.",
            type=changed,
        )
    return room
