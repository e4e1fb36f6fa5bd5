"""LoRA files of diffusion models, as kohya's scripts and diffusers name their tensors, to PEFT.

A file may hold parts for several models of a pipeline: the denoiser (`unet`, `transformer`) and text encoders. Each
part becomes an adapter of its own. kohya writes paths with `_` for `.`: which path is meant is read from the modules of
the base, never guessed. The update is alpha / rank * up @ down; without an alpha the factor is 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from lora_contract import canonical
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
    "alpha": "alpha",
}
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
_METADATA: Final = "lora_adapter_metadata"
"""Where diffusers writes PEFT's config of each part."""


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
    flat = _flat(known)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        split = _split(name)
        if split is None:
            raise refused(f"its tensor {name} is not one of a LoRA file of kohya or diffusers")
        owner, path, end, joined = split
        if owner == component:
            parts.setdefault(_path(name, _current(path, layers), joined, known, flat, base), {})[end] = tensor
    stated = _stated(component, metadata)
    modules: dict[str, Scaled] = {}
    written: dict[str, Tensor] = {}
    for path, part in parts.items():
        if not {"A", "B"} <= part.keys():
            raise refused(f"{path} has only one of its two factors")
        rank = part["A"].shape[0]
        alpha = part["alpha"].number() if "alpha" in part else stated.get("lora_alpha", rank)
        modules[path] = Scaled(rank, float(alpha))
        written[f"{PREFIX}{path}.lora_A.weight"] = part["A"]
        written[f"{PREFIX}{path}.lora_B.weight"] = part["B"]
    return Converted(lora_config(modules, known=known, base=base), written)


def fits(component: str, names: Collection[str], known: Mapping[str, BaseModule], layers: int | None) -> bool:
    """Whether a base has the modules that a part of a file adapts."""
    flat = _flat(known)
    parts = [part for part in map(_split, names) if part is not None and part[0] == component]
    paths = [(_current(part[1], layers), part[3]) for part in parts]
    return all(
        (path in flat and flat[path] is not None) if joined else _renamed(path) in known for path, joined in paths
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
        return path if path in known else _renamed(path)
    found = flat.get(path, "")
    if found is None:
        raise refused(f"{name} may mean several modules of {base}")
    if not found:
        raise refused(
            f"{base} has no module that {name} names",
            hint="Name its base with --base: the U-Net, transformer or text encoder as diffusers saves it.",
        )
    return found


def _flat(known: Mapping[str, BaseModule]) -> dict[str, str | None]:
    """Paths by their spelling with `_`; None for a spelling of two paths."""
    flat: dict[str, str | None] = {}
    for path in known:
        key = path.replace(".", "_")
        flat[key] = None if key in flat else path
    return flat


def _stated(component: str, metadata: Mapping[str, str]) -> dict[str, float]:
    """The default alpha that diffusers recorded for a part."""
    if _METADATA not in metadata:
        return {}
    try:
        document = canonical.loads_strict(metadata[_METADATA].encode(), what=_METADATA, max_bytes=1 << 20)
    except RegistryError:
        return {}
    if not isinstance(document, dict):
        return {}
    options = {key.removeprefix(f"{component}."): value for key, value in document.items()}
    for key in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "lora_bias"):
        if options.get(key):
            raise refused(f"{_METADATA} sets {key} for {component}, which is not converted")
    alpha = options.get("lora_alpha")
    return {"lora_alpha": float(alpha)} if isinstance(alpha, int | float) else {}
