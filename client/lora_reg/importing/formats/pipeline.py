"""LoRA files of diffusion models for a whole pipeline: one adapter with a part for each component.

The file is written as diffusers writes it, so that `load_lora_weights` reads it: names with the component in front, and
PEFT's config of each part in the header. adapter_config.json says the same for everybody else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from lora_contract.adapter.parts import METADATA, of_part
from lora_contract.adapter.pipeline_metadata import STATED
from lora_contract.base import BaseFingerprint
from lora_contract.components import component, component_names
from lora_contract.modules import BaseModule, modules_of
from lora_reg.importing.formats import kohya
from lora_reg.importing.formats.document import Converted, Scaled, lora_config, plain, verify
from lora_reg.importing.formats.tensors import Tensor, refused

_DENOISERS: Final = ("unet", "transformer")


def convert(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, base: BaseFingerprint, name: str
) -> Converted:
    """Convert all parts of a file. base: a pipeline. name: value of base_model_name_or_path.

    Raises RegistryError `rejected`, with the reason.
    """
    names = component_names(base)
    known: dict[str, Mapping[str, BaseModule]] = {}
    parts: dict[str, kohya.PartOfFile] = {}
    for part in kohya.components(tensors):
        place = _place(part, names, name)
        model = component(base, place)
        known[place] = modules_of(model).modules
        parts[place] = kohya.read_part(
            part, tensors, metadata, known=known[place], layers=layers_of(model), base=f"{place} of {name}"
        )
    configs = {
        place: lora_config(part.modules, known=known[place], base=name, options=part.options)
        for place, part in parts.items()
    }
    return Converted(
        _whole(parts, configs, known, base, name),
        {f"{place}.{key}": tensor for place, part in parts.items() for key, tensor in part.tensors.items()},
        metadata={METADATA: _header(configs)},
    )


def layers_of(base: BaseFingerprint) -> int | None:
    """`layers_per_block` of a U-Net's config."""
    found = base.config.get("layers_per_block")
    return found if type(found) is int and 0 < found < 100 else None


def _place(part: str, names: tuple[str, ...], base: str) -> str:
    """The component for a part. kohya calls every denoiser a U-Net."""
    if part in names:
        return part
    other = next((name for name in _DENOISERS if name in names), None)
    if part in _DENOISERS and other is not None:
        return other
    raise refused(
        f"it has a part for {part}, and {base} has only {', '.join(names)}", hint="Name its base with --base."
    )


def _whole(
    parts: Mapping[str, kohya.PartOfFile],
    configs: Mapping[str, dict[str, Any]],
    known: Mapping[str, Mapping[str, BaseModule]],
    base: BaseFingerprint,
    name: str,
) -> dict[str, Any]:
    """adapter_config.json: names and keys of patterns have the component in front."""
    scaled: dict[str, Scaled] = {
        f"{place}.{path}": item for place, part in parts.items() for path, item in part.modules.items()
    }
    options = {key: {config[key] for config in configs.values()} for key in ("use_dora", "use_rslora")}
    mixed = next((key for key, values in options.items() if len(values) > 1), None)
    if mixed is not None:
        raise refused(f"{mixed} is set for some of its parts only")
    rank = Counter(item.rank for item in scaled.values()).most_common(1)[0][0]
    alpha = Counter(item.alpha for item in scaled.values()).most_common(1)[0][0]
    document = {
        **next(iter(configs.values())),
        "auto_mapping": {"base_model_class": base.architecture, "parent_library": "diffusers"},
        "base_model_name_or_path": name,
        "fan_in_fan_out": False,
        "r": rank,
        "lora_alpha": plain(alpha),
        "target_modules": [
            f"{place}.{target}" for place, config in configs.items() for target in config["target_modules"]
        ],
        "rank_pattern": {path: item.rank for path, item in sorted(scaled.items()) if item.rank != rank},
        "alpha_pattern": {path: plain(item.alpha) for path, item in sorted(scaled.items()) if item.alpha != alpha},
    }
    for place, part in parts.items():
        verify(of_part(document, place, parts), part.modules, known[place])
    return document


def _header(configs: Mapping[str, dict[str, Any]]) -> str:
    """PEFT's configs as diffusers keeps them. Patterns match the ends of paths, so that they fit a text encoder with
    and without its outer `text_model`."""
    stated: dict[str, Any] = {}
    for place, config in configs.items():
        for key in STATED:
            value = config[key]
            if isinstance(value, list):
                value = [item.removeprefix("text_model.") for item in value]
            elif isinstance(value, dict):
                value = {path.removeprefix("text_model."): item for path, item in value.items()}
            stated[f"{place}.{key}"] = value
    return msgspec.json.format(msgspec.json.encode(stated, order="sorted"), indent=2).decode()
