"""Names of tensors in LoRA files of diffusion models, and the modules of a base that they mean. Pure.

kohya's scripts write paths with `_` for `.`; which path is meant is read from the modules of the base, never guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from lora_contract.modules import BaseModule
from lora_reg.importing.formats import flux
from lora_reg.importing.formats.sgm import to_diffusers
from lora_reg.importing.formats.tensors import refused

COMPONENTS: Final = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
_KOHYA: Final = {
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
_ORIGINAL: Final = {"diffusion_model": "unet"}
"""What programs with the original names put before those of the denoiser."""
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
SUFFIXES: Final = {"A": "lora_A.weight", "B": "lora_B.weight", "M": "lora_magnitude_vector"}
_OUTSIDE: Final = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
"""Modules of the original Stable Diffusion code that are in no block."""
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


def is_diffusion(names: Collection[str]) -> bool:
    """Whether these are the tensor names of a LoRA file of kohya's scripts or of diffusers."""
    return bool(names) and all(split_name(name) is not None for name in names)


def components(names: Collection[str]) -> list[str]:
    """The parts that a file holds, the denoiser first."""
    found = {part[0] for part in map(split_name, names) if part is not None}
    return [name for name in COMPONENTS if name in found]


def split_name(name: str) -> tuple[str, str, str, bool] | None:
    """Split a name into part, path, role of the tensor, and whether the path has `_` for `.`."""
    for prefix, component in _KOHYA.items():
        if name.startswith(prefix):
            path, _, end = name.removeprefix(prefix).partition(".")
            if end in _OTHER:
                raise refused(f"{name} is {_OTHER[end]}")
            return (component, path, _ENDS[end], True) if end in _ENDS else None
    component, _, rest = name.partition(".")
    component = _ORIGINAL.get(component, component)
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
    return (_OUTSIDE.get(path) or to_diffusers(path, layers) or path) if layers else path


def _renamed(path: str) -> str:
    path = path.replace(".processor.", ".")
    return f"{path}.0" if path.endswith(".to_out") else path


def places_of(
    path: str, joined: bool, known: Mapping[str, BaseModule], flat: Mapping[str, str | None], layers: int | None
) -> tuple[str, ...]:
    """The modules of the base that a path means: several if diffusers has the parts of one of the original."""
    current = _current(path, layers)
    if joined:
        found = flat.get(current) if current in flat else flat.get(current.removeprefix("text_model_"))
    else:
        found = _spelled(path, known) or _spelled(_renamed(path), known)
    if found is not None:
        return (found,)
    parts = flux.places(path.replace(".", "_"))
    if parts and all(part in known for part in parts):
        return parts
    return () if joined else (_renamed(path),)


def is_ambiguous(path: str, joined: bool, flat: Mapping[str, str | None], layers: int | None) -> bool:
    current = _current(path, layers)
    return joined and current in flat and flat[current] is None


def _spelled(path: str, known: Mapping[str, BaseModule]) -> str | None:
    """The path as the base has it, with the prefix of a text encoder or without; None if it has no such module."""
    return next((found for found in (path, path.removeprefix(_TEXT), _TEXT + path) if found in known), None)


def flat_paths(known: Mapping[str, BaseModule]) -> dict[str, str | None]:
    """Paths by their spelling with `_`; None for a spelling of two paths."""
    flat: dict[str, str | None] = {}
    for path in known:
        key = path.replace(".", "_")
        flat[key] = None if key in flat else path
    return flat
