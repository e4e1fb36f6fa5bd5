"""Write adapter_config.json for modules whose ranks and scales are known, so that PEFT computes exactly these."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from lora_contract import canonical
from lora_contract.adapter.config import parse_config
from lora_contract.adapter.patterns import targets
from lora_contract.adapter.scaling import scales
from lora_contract.modules import BaseModule
from lora_reg.importing.formats.tensors import Tensor, refused

PREFIX = "base_model.model."


class Converted(msgspec.Struct, frozen=True):
    """An adapter in PEFT's format. notes: what a person should know of the conversion. metadata: of the header."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    metadata: dict[str, str] = {}

    def config_bytes(self) -> bytes:
        return msgspec.json.format(canonical.dumps(self.config), indent=2) + b"\n"


class Scaled(msgspec.Struct, frozen=True):
    """The rank of a module and its alpha: its update is multiplied by alpha / rank."""

    rank: int
    alpha: float


def lora_config(
    modules: Mapping[str, Scaled],
    *,
    known: Mapping[str, BaseModule],
    base: str,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The config of a LoRA adapter, with patterns for modules that differ from the most common rank and alpha.

    Args:
        modules: the adapted modules by path.
        known: modules of the base by path: targets are named by their last components if these name no other.
        base: value of base_model_name_or_path.
        options: further keys.

    Raises RegistryError `rejected` if PEFT would compute another rank, scale or set of targets from it.
    """
    if not modules:
        raise refused("it has no LoRA tensors")
    rank = Counter(item.rank for item in modules.values()).most_common(1)[0][0]
    alpha = Counter(item.alpha for item in modules.values()).most_common(1)[0][0]
    document: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": plain(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(path in known and known[path].transposed for path in modules),
        "target_modules": _targets(modules, known),
        "rank_pattern": {path: item.rank for path, item in sorted(modules.items()) if item.rank != rank},
        "alpha_pattern": {path: plain(item.alpha) for path, item in sorted(modules.items()) if item.alpha != alpha},
        "use_dora": False,
        "use_rslora": False,
        **(options or {}),
    }
    verify(document, modules, known)
    return document


def _targets(modules: Mapping[str, Scaled], known: Mapping[str, BaseModule]) -> list[str]:
    """The ends of the modules' paths, or whole paths if something else ends like them."""
    ends = {_end(path) for path in modules}
    if all(path in modules for path in _paths(known) if _end(path) in ends or path in ends):
        return sorted(ends)
    return sorted(modules)


def _end(path: str) -> str:
    """The last component, with the one before a number: `to_out.0`."""
    parts = path.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdecimal() else parts[-1]


def _paths(known: Mapping[str, BaseModule]) -> set[str]:
    """The paths of all modules and of those that contain them."""
    found = set(known)
    for path in known:
        while path := path.rpartition(".")[0]:
            found.add(path)
    return found


def plain(number: float) -> int | float:
    return int(number) if number == int(number) else number


def verify(document: dict[str, Any], modules: Mapping[str, Scaled], known: Mapping[str, BaseModule]) -> None:
    config = parse_config(canonical.dumps(document))
    scale, targeted = scales(config), targets(config)
    for path, item in modules.items():
        found = scale(path)
        divisor = math.sqrt(item.rank) if config.use_rslora else item.rank
        if (found.r, found.scale) != (item.rank, item.alpha / divisor):
            raise refused(f"{path} would get rank {found.r} and scale {found.scale!r} in PEFT")
    extra = next((path for path in sorted(_paths(known)) if path not in modules and targeted(path)), None)
    if extra is not None:
        raise refused(f"PEFT would also adapt {extra}")
