"""Changes without factors: reported and, on request, stored in full as PEFT's modules_to_save and trained biases."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from lora_contract.adapter.names import PREFIX
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModules
from lora_contract.tensors import ADAPTER_DTYPES
from lora_kernels.extracting.pairs import Pair
from lora_kernels.extracting.report import UnheldChange
from lora_kernels.extracting.targets import running_path, shared

_SAVED_KINDS: Final = ("linear", "embedding", "norm", "conv")


@dataclass
class SavedTensors:
    """tensors: of the fine-tune, by name in the adapter. modules: for modules_to_save. biases: whether the tensors
    include biases of adapted modules (`bias: lora_only`)."""

    tensors: dict[str, BaseTensor] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    biases: bool = False


def reason(name: str, modules: BaseModules) -> str:
    """Why a tensor has no factors."""
    path, _, leaf = name.rpartition(".")
    module = modules.modules.get(path)
    if leaf == "bias":
        return "a bias"
    if module is None or leaf != "weight":
        return "not the weight of a layer"
    if module.kind == "norm":
        return "a norm"
    return f"a weight of kind {module.kind}" if module.kind not in _SAVED_KINDS else "not among the targets"


def save_whole(
    changes: Sequence[UnheldChange],
    adapted: Collection[str],
    pairs: Mapping[str, Pair],
    base: BaseFingerprint,
    modules: BaseModules,
) -> tuple[SavedTensors, list[UnheldChange]]:
    """Collect the tensors to store for the changes. Returns them, and the changes with `saved` and `reason` updated.

    adapted: paths of the modules that have factors; their biases are stored as trained biases, all or none, as PEFT
    does. Other modules are stored with all of their tensors, which loaders expect.
    """
    saved = SavedTensors()
    updated = []
    for change in changes:
        path, _, leaf = change.tensor.rpartition(".")
        why = _unsavable(change.tensor, pairs, base, modules)
        if why is None and path in adapted:
            saved.biases = saved.biases or leaf == "bias"
        elif why is None:
            running = running_path(base, modules, path)
            if running not in saved.modules:
                saved.modules.append(running)
                saved.tensors |= {
                    f"{PREFIX}{running}.{part}": pairs[f"{path}.{part}"].tuned
                    for part in ("weight", "bias")
                    if f"{path}.{part}" in pairs
                }
        updated.append(msgspec.structs.replace(change, saved=why is None, reason=why or change.reason))
    if saved.biases:
        saved.tensors |= {
            f"{PREFIX}{running_path(base, modules, path)}.base_layer.bias": pairs[f"{path}.bias"].tuned
            for path in sorted(adapted)
            if f"{path}.bias" in pairs
        }
    return saved, updated


def _unsavable(name: str, pairs: Mapping[str, Pair], base: BaseFingerprint, modules: BaseModules) -> str | None:
    path, _, leaf = name.rpartition(".")
    module = modules.modules.get(path)
    if module is None or module.kind not in _SAVED_KINDS or leaf not in ("weight", "bias"):
        return "not a parameter of a module that PEFT can save"
    if shared(modules, module):
        return "shared by the output layer and the input embedding"
    stored = [pairs[part].tuned for part in (f"{path}.weight", f"{path}.bias") if part in pairs]
    if any(tensor.dtype not in ADAPTER_DTYPES for tensor in stored):
        return f"stored as {stored[0].dtype}, which adapters do not support"
    try:
        running_path(base, modules, path)
    except RegistryError as error:
        return error.detail.rstrip(".")
    return None
