"""Effective rank, alpha and scale of a module, as PEFT computes them from the config.

Source: peft 0.21.2, `LoraModel._create_and_replace`, `LoraLayer.update_layer`, `SVDLinear` (AdaLoRA).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.patterns import names_module, pattern_key
from lora_contract.errors import RegistryError
from lora_contract.regex import Budget

# Types whose update carries alpha / r.
_SCALED = frozenset({"LORA", "LOHA", "LOKR", "GRALORA"})


class ModuleScale(msgspec.Struct, frozen=True):
    """Rank, alpha and scale of one module. scale: the factor of the product of its factors."""

    r: int
    alpha: float
    scale: float


Scales = Callable[[str], ModuleScale]


def scales(config: AdapterConfig, budget: Budget | None = None) -> Scales:
    """A function from module path to scale. Patterns are compiled once: use it for many modules.

    rank_pattern and alpha_pattern are independent; the first matching key wins. rsLoRA divides by sqrt(r). AdaLoRA
    divides alpha by init_r + 1e-5: its divisor is not saved and never changes. Raises RegistryError `rejected` if a key
    is not a supported expression.
    """
    adalora = config.peft_type == "ADALORA"
    rank_key = pattern_key(() if adalora else config.rank_pattern, budget)
    alpha_key = pattern_key(config.alpha_pattern, budget)
    parameter = names_module(config.target_parameters, budget)
    r_default = (config.init_r or 12) if adalora else config.r or 8
    alpha_default = 8.0 if config.alpha is None else config.alpha

    def of(path: str) -> ModuleScale:
        # If the config targets a parameter (a router's `gate.weight`), patterns are matched against its name.
        path = f"{path}.weight" if parameter(f"{path}.weight") else path
        key = rank_key(path)
        r: int = r_default if key is None else config.rank_pattern[key]
        key = alpha_key(path)
        alpha = alpha_default if key is None else float(config.alpha_pattern[key])
        if adalora:
            alpha = alpha if alpha > 0 else float(r)
            return ModuleScale(r, alpha, alpha / (r + 1e-5))
        if config.peft_type not in _SCALED:
            return ModuleScale(r, alpha, 1.0)
        if config.peft_type == "GRALORA":
            hybrid = config.raw.get("hybrid_r")
            return ModuleScale(r, alpha, alpha / (r + hybrid if type(hybrid) is int and 0 < hybrid < 1 << 20 else r))
        return ModuleScale(r, alpha, alpha / math.sqrt(r) if config.use_rslora else alpha / r)

    return of


def lora_scale(config: AdapterConfig, module: str) -> float:
    """The factor s in W + s B A of one module. Raises RegistryError `unsupported` for types without one."""
    if config.peft_type not in _SCALED and config.peft_type != "ADALORA":
        raise RegistryError("unsupported", f"Adapters of type {config.peft_type} have no LoRA scale.")
    return scales(config)(module).scale


def rank_of(config: AdapterConfig, module: str) -> int:
    """The rank that the config gives a module."""
    return scales(config)(module).r


def alpha_of(config: AdapterConfig, module: str) -> float:
    """The alpha that the config gives a module."""
    return scales(config)(module).alpha
