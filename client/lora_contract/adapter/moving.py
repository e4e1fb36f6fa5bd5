"""Move an adapter of a part of the base to where the base has that part: new names, the same tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from lora_contract import canonical
from lora_contract.adapter.config import AdapterConfig, parse_config
from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.part_of_base import renamed_module
from lora_contract.adapter.patterns import targets
from lora_contract.adapter.saved import unwrapped
from lora_contract.adapter.scaling import scales
from lora_contract.adapter.sorting import sort_tensors
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModules
from lora_contract.tensors import Header

_BY_LAYER = ("exclude_modules", "layers_to_transform", "layers_pattern")


class Moved(NamedTuple):
    """header: with the new names and the old places of the tensors."""

    config: AdapterConfig
    header: Header


def moved(config: AdapterConfig, header: Header, modules: BaseModules, prefix: str) -> Moved:
    """The adapter with the base's names. prefix: of the part in the base, in any spelling.

    Raises RegistryError `rejected` if the base has none of the adapter's modules there.
    """
    sorted_ = sort_tensors(config.peft_type, header)
    paths = {group.path: renamed_module(prefix, group.path, modules) for group in sorted_.modules}
    names: dict[str, str] = {}
    for group in sorted_.modules:
        for entry in group.tensors.values():
            names[entry.name] = _renamed(entry.name, group.path, paths[group.path])
    for entry in sorted_.others:
        owner = unwrapped(entry.name.removeprefix(PREFIX)).name.rpartition(".")[0]
        names[entry.name] = _renamed(entry.name, owner, renamed_module(prefix, owner, modules))
    if not any(modules.under(prefix, path) is not None for path in paths):
        raise RegistryError(
            "rejected",
            f"The base has none of the adapter's {len(paths)} modules under {prefix!r}.",
            hint="Leave --prefix out: if the base has them elsewhere, the check says where.",
        )
    entries = tuple(msgspec.structs.replace(entry, name=names.get(entry.name, entry.name)) for entry in header.tensors)
    document = _document(config, paths)
    return Moved(parse_config(canonical.dumps(document)), msgspec.structs.replace(header, tensors=entries))


def _renamed(name: str, path: str, new: str) -> str:
    old = f"{PREFIX}{path}."
    return f"{PREFIX}{new}.{name[len(old) :]}" if name.startswith(old) else name


def _document(config: AdapterConfig, paths: Mapping[str, str]) -> dict[str, Any]:
    """The config with whole paths as targets: by their ends they would name modules of other parts too."""
    document = dict(config.raw)
    if config.target_modules:
        targeted = targets(config)
        document["target_modules"] = sorted(new for path, new in paths.items() if targeted(path))
        document.update({key: None for key in _BY_LAYER if key in document})
    if config.peft_type == "ADALORA":
        ends = {f"{path}.lora_E": f"{new}.lora_E" for path, new in paths.items()}
        document["rank_pattern"] = {ends.get(key, key): value for key, value in config.rank_pattern.items()}
        return document
    scale = scales(config)
    for key, own in (("rank_pattern", "r"), ("alpha_pattern", "alpha")):
        given = getattr(config, key)
        if given:
            default = getattr(config, own)
            explicit = {new: getattr(scale(path), own) for path, new in sorted(paths.items())}
            differing = {path: _plain(value) for path, value in explicit.items() if value != default}
            document[key] = {**differing, **{name: value for name, value in given.items() if name not in differing}}
    return document


def _plain(value: float) -> int | float:
    return int(value) if value == int(value) else value
