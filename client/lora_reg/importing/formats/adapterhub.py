"""Adapters of AdapterHub's `adapters` library to PEFT.

Of its methods only LoRA has a counterpart in PEFT with the same arithmetic: alpha / r * B @ A, without a gate. Its
tensors are named `<module>.loras.<adapter>.lora_A`, with the same shapes as PEFT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_contract.modules import BaseModule
from lora_reg.importing.formats.document import PREFIX, Converted, Scaled, lora_config
from lora_reg.importing.formats.tensors import Tensor, refused

_HEADS = ("heads.", "prediction_head")


def is_adapterhub(config: Mapping[str, Any]) -> bool:
    """Whether adapter_config.json was written by the `adapters` library (or adapter-transformers)."""
    return "peft_type" not in config and isinstance(config.get("config"), dict) and "model_class" in config


def base_of(config: Mapping[str, Any]) -> str | None:
    model = config.get("model_name")
    return model if isinstance(model, str) and model else None


def convert(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, known: Mapping[str, BaseModule], base: str
) -> Converted:
    """Convert a LoRA of AdapterHub; arguments as of `mlx.convert`. Raises RegistryError `rejected`, with the reason."""
    method: Mapping[str, Any] = config["config"]
    architecture = method.get("architecture")
    if architecture != "lora":
        raise refused(f"its method is {architecture or 'a bottleneck adapter'}, which PEFT has not")
    if method.get("composition_mode", "add") != "add":
        raise refused(f"its composition_mode is {method.get('composition_mode')!r}, expected 'add'")
    if method.get("use_gating"):
        raise refused("it has a gate, which PEFT has not")
    rank, alpha = method.get("r"), method.get("alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise refused("its config has no r or no alpha")
    modules: dict[str, Scaled] = {}
    written: dict[str, Tensor] = {}
    heads = False
    for name, tensor in tensors.items():
        if name.startswith(_HEADS):
            heads = True
            continue
        path, marker, rest = name.partition(".loras.")
        leaf = rest.rpartition(".")[2]
        if not marker or leaf not in ("lora_A", "lora_B"):
            raise refused(f"its tensor {name} is not a factor of a LoRA")
        found = _module(path, known)
        expected = 0 if leaf == "lora_A" else 1
        if len(tensor.shape) != 2 or tensor.shape[expected] != rank:
            raise refused(
                f"{name} has the shape {list(tensor.shape)}, and r is {rank}: several projections share a module"
            )
        modules[found] = Scaled(rank, float(alpha))
        written[f"{PREFIX}{found}.{leaf}.weight"] = tensor
    notes = ("the prediction head was left out: heads of AdapterHub have other layers",) if heads else ()
    return Converted(lora_config(modules, known=known, base=base), written, notes)


def _module(path: str, known: Mapping[str, BaseModule]) -> str:
    """The module of the base: the same path, or one that has or lacks the name of the whole model before it."""
    rest = path.partition(".")[2]
    found = [candidate for candidate in (path, rest) if candidate in known]
    found += [
        candidate
        for candidate in known
        if candidate.endswith(f".{path}") and candidate.count(".") == path.count(".") + 1
    ]
    if not found:
        raise refused(f"the base has no module {path}")
    if len(set(found)) > 1:
        raise refused(f"{path} may mean {found[0]} or {found[1]}")
    return found[0]
