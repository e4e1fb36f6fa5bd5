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
from lora_reg.importing.formats.document import PREFIX, Converted, Scaled, lora_config
from lora_reg.importing.formats.sgm import to_diffusers
from lora_reg.importing.formats.tensors import Tensor, refused

COMPONENTS: Final = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
_KOHYA: Final = {
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
_ENDS: Final = {
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "lora.down.weight": "A",
    "lora.up.weight": "B",
    "lora_linear_layer.down.weight": "A",
    "lora_linear_layer.up.weight": "B",
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_magnitude_vector": "M",
    "lora_magnitude_vector.weight": "M",
    "alpha": "alpha",
}
_SUFFIXES: Final = {"A": "lora_A.weight", "B": "lora_B.weight", "M": "lora_magnitude_vector"}
_TEXT: Final = "text_model."
"""What transformers 4 has before the paths of a CLIP text encoder, and 5 has not."""
_OTHER: Final = {
    "lora_mid.weight": "a third factor (LoCon with Tucker decomposition)",
    "dora_scale": "DoRA, whose norm kohya and PEFT take along different dimensions",
    "hada_w1_a": "LoHa of LyCORIS",
    "lokr_w1": "LoKr of LyCORIS",
    "lokr_w1_a": "LoKr of LyCORIS",
    "oft_blocks": "OFT of kohya",
    "diff": "full differences of weights",
    "diff_b": "differences of biases",
}
_MAX_METADATA: Final = 8 * 1024 * 1024


def is_diffusion(names: Collection[str]) -> bool:
    """Whether these are the tensor names of a LoRA file of kohya's scripts or of diffusers."""
    return bool(names) and all(_split(name) is not None for name in names)


def components(names: Collection[str]) -> list[str]:
    """The parts that a file holds, the denoiser first."""
    found = {part[0] for part in map(_split, names) if part is not None}
    return [name for name in COMPONENTS if name in found]


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
    flat = _flat(known)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        split = _split(name)
        if split is None:
            raise refused(f"its tensor {name} is not one of a LoRA file of kohya or diffusers")
        owner, path, end, joined = split
        if owner == component:
            parts.setdefault(_path(name, _current(path, layers), joined, known, flat, base), {})[end] = tensor
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
        for end, suffix in _SUFFIXES.items():
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
    flat = _flat(known)
    parts = [part for part in map(_split, names) if part is not None and part[0] == component]
    paths = [(_current(part[1], layers), part[3]) for part in parts]
    return all(
        bool(flat.get(path) or flat.get(path.removeprefix("text_model_")))
        if joined
        else _spelled(path, known) is not None or _spelled(_renamed(path), known) is not None
        for path, joined in paths
    )


def _split(name: str) -> tuple[str, str, str, bool] | None:
    """Split a name into part, path, role of the tensor, and whether the path has `_` for `.`."""
    for prefix, component in _KOHYA.items():
        if name.startswith(prefix):
            path, _, end = name.removeprefix(prefix).partition(".")
            if end in _OTHER:
                raise refused(f"{name} is {_OTHER[end]}")
            return (component, path, _ENDS[end], True) if end in _ENDS else None
    component, _, rest = name.partition(".")
    if component not in COMPONENTS:
        return None
    for end, role in _ENDS.items():
        if rest.endswith(f".{end}"):
            return component, rest[: -len(end) - 1], role, False
    # Attention processors of diffusers before 0.22: `attn1.processor.to_q_lora.down.weight`.
    for end, role in (("_lora.down.weight", "A"), ("_lora.up.weight", "B")):
        if ".processor." in rest and rest.endswith(end):
            return component, rest[: -len(end)], role, False
    other = next((what for end, what in _OTHER.items() if rest.endswith(f".{end}")), None)
    if other is not None:
        raise refused(f"{name} is {other}")
    return None


def _current(path: str, layers: int | None) -> str:
    return (to_diffusers(path, layers) or path) if layers else path


def _renamed(path: str) -> str:
    path = path.replace(".processor.", ".")
    return f"{path}.0" if path.endswith(".to_out") else path


def _path(
    name: str, path: str, joined: bool, known: Mapping[str, BaseModule], flat: Mapping[str, str | None], base: str
) -> str:
    if not joined:
        return _spelled(path, known) or _spelled(_renamed(path), known) or _renamed(path)
    found = flat.get(path) if path in flat else flat.get(path.removeprefix("text_model_"), "")
    if found is None:
        raise refused(f"{name} may mean several modules of {base}")
    if not found:
        raise refused(
            f"{base} has no module that {name} names",
            hint="Name its base with --base: the U-Net, transformer or text encoder as diffusers saves it.",
        )
    return found


def _spelled(path: str, known: Mapping[str, BaseModule]) -> str | None:
    """The path as the base has it, with the prefix of a text encoder or without; None if it has no such module."""
    return next((found for found in (path, path.removeprefix(_TEXT), _TEXT + path) if found in known), None)


def _flat(known: Mapping[str, BaseModule]) -> dict[str, str | None]:
    """Paths by their spelling with `_`; None for a spelling of two paths."""
    flat: dict[str, str | None] = {}
    for path in known:
        key = path.replace(".", "_")
        flat[key] = None if key in flat else path
    return flat


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
