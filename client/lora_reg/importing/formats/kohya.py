"""LoRA files of diffusion models, as kohya's scripts and diffusers name their tensors, to PEFT.

A file may hold parts for several models of a pipeline: the denoiser (`unet`, `transformer`) and text encoders. Each
part becomes an adapter of its own. kohya writes paths with `_` for `.`: which path is meant is read from the modules of
the base, never guessed. The update is alpha / rank * up @ down; without an alpha the factor is 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from lora_contract import canonical
from lora_contract.adapter.config import AdapterConfig, parse_config
from lora_contract.adapter.parts import METADATA
from lora_contract.adapter.pipeline_metadata import part_of
from lora_contract.adapter.scaling import scales
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModule
from lora_reg.importing.formats import flux
from lora_reg.importing.formats.diffusion_names import (
    SUFFIXES,
    components,
    flat_paths,
    is_ambiguous,
    is_diffusion,
    places_of,
    split_name,
)
from lora_reg.importing.formats.document import PREFIX, Converted, Scaled, lora_config
from lora_reg.importing.formats.tensors import Tensor, refused

__all__ = ["components", "convert", "fits", "is_diffusion", "read_part", "stated_config"]

_MAX_METADATA: Final = 8 * 1024 * 1024


def convert(
    component: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    known: Mapping[str, BaseModule],
    layers: int | None,
    base: str,
) -> Converted:
    """Convert one part of a file.

    Args:
        component: one of `components`.
        metadata: of the safetensors file.
        known: modules of the base by path.
        layers: `layers_per_block` of the base's config, for names of the original Stable Diffusion code.
        base: value of base_model_name_or_path.

    Raises RegistryError `rejected`, with the reason.
    """
    found = read_part(component, tensors, metadata, known=known, layers=layers, base=base)
    config = lora_config(found.modules, known=known, base=base, options=found.options)
    return Converted(config, {f"{PREFIX}{name}": tensor for name, tensor in found.tensors.items()})


class PartOfFile(msgspec.Struct, frozen=True):
    """One part of a file. tensors: by path and PEFT's suffix. options: of PEFT's config."""

    modules: dict[str, Scaled]
    tensors: dict[str, Tensor]
    options: dict[str, Any]


def read_part(
    component: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    known: Mapping[str, BaseModule],
    layers: int | None,
    base: str,
) -> PartOfFile:
    """Read one part of a file; see `convert`."""
    flat = flat_paths(known)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        split = split_name(name)
        if split is None:
            raise refused(f"its tensor {name} is not one of a LoRA file of kohya or diffusers")
        owner, path, end, joined = split
        if owner == component:
            places = places_of(path, joined, known, flat, layers)
            if not places:
                raise _unplaced(name, base, ambiguous=is_ambiguous(path, joined, flat, layers))
            for place, own in zip(places, _divided(name, tensor, end, places, known), strict=True):
                parts.setdefault(place, {})[end] = own
    stated = stated_config(component, metadata)
    alphas = None if stated is None else scales(stated)
    modules: dict[str, Scaled] = {}
    written: dict[str, Tensor] = {}
    for path, part in parts.items():
        if not {"A", "B"} <= part.keys():
            raise refused(f"{path} has only one of its two factors")
        rank = part["A"].shape[0]
        default = float(rank) if alphas is None else alphas(path).alpha
        modules[path] = Scaled(rank, part["alpha"].number() if "alpha" in part else default)
        for end, suffix in SUFFIXES.items():
            if end in part:
                written[f"{path}.{suffix}"] = _shaped(part[end], known.get(path)) if end in "AB" else part[end]
    magnitudes = [path for path, part in parts.items() if "M" in part]
    if magnitudes and len(magnitudes) < len(parts):
        raise refused(
            f"{magnitudes[0]} has a magnitude of DoRA, and {next(p for p in parts if p not in magnitudes)} none"
        )
    dora, rslora = bool(magnitudes), stated is not None and stated.use_rslora
    if stated is not None and stated.use_dora != dora:
        raise refused(f"{METADATA} sets use_dora to {stated.use_dora} for {component}, against its tensors")
    return PartOfFile(modules, written, {"use_dora": dora, "use_rslora": rslora})


def _shaped(tensor: Tensor, module: BaseModule | None) -> Tensor:
    """The factor of a linear layer as a matrix, and that of a convolution of size 1 as a kernel: files have either."""
    weight = None if module is None else module.weight
    if weight is None or len(weight.shape) == len(tensor.shape):
        return tensor
    if len(weight.shape) == 2 and set(tensor.shape[2:]) == {1}:
        return tensor.reshaped(*tensor.shape[:2])
    if len(tensor.shape) == 2 and set(weight.shape[2:]) == {1}:
        return tensor.reshaped(*tensor.shape, *weight.shape[2:])
    return tensor


def fits(component: str, names: Collection[str], known: Mapping[str, BaseModule], layers: int | None) -> bool:
    """Whether a base has the modules that a part of a file adapts."""
    flat = flat_paths(known)
    parts = [part for part in map(split_name, names) if part is not None and part[0] == component]
    places = [places_of(part[1], part[3], known, flat, layers) for part in parts]
    return all(found and all(place in known for place in found) for found in places)


def _divided(
    name: str, tensor: Tensor, end: str, places: tuple[str, ...], known: Mapping[str, BaseModule]
) -> list[Tensor]:
    """The tensor of each place: A and alpha are those of all, rows of B are divided."""
    if end not in ("B", "M"):
        return [tensor] * len(places)
    if len(places) > 1:
        sizes = [known[place].out or 0 for place in places]
        if not tensor.shape or sum(sizes) != tensor.shape[0]:
            raise refused(
                f"{name} has the shape {list(tensor.shape)}, expected {sum(sizes)} rows for {', '.join(places)}"
            )
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        return [tensor.rows(stop - size, stop) for size, stop in zip(sizes, ends, strict=True)]
    if places[0] == flux.SWAPPED and "final_layer" in name:
        half = tensor.shape[0] // 2
        return [tensor.rows(half, 2 * half).followed_by(tensor.rows(0, half))]
    return [tensor]


def _unplaced(name: str, base: str, *, ambiguous: bool) -> RegistryError:
    if ambiguous:
        return refused(f"{name} may mean several modules of {base}")
    return refused(
        f"{base} has no module that {name} names",
        hint="Name its base with --base: the pipeline, or the U-Net, transformer or text encoder that diffusers saves.",
    )


def stated_config(component: str, metadata: Mapping[str, str]) -> AdapterConfig | None:
    """PEFT's config that diffusers recorded for a part; None if it did not."""
    if METADATA not in metadata:
        return None
    try:
        document = canonical.loads_strict(metadata[METADATA].encode(), what=METADATA, max_bytes=_MAX_METADATA)
        own = part_of(document, component)
        return parse_config(canonical.dumps({**own, "peft_type": "LORA"})) if own else None
    except RegistryError as error:
        raise refused(f"{METADATA} in its header cannot be read: {error.detail}") from error
