"""What PEFT refuses when it reads a config whose values have the right types one by one. Read from peft 0.21.2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from lora_contract.adapter.config import AdapterConfig, parse_config
from lora_contract.errors import RegistryError

_TASKS: Final = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
_MONTECLORA: Final = frozenset(
    ("num_samples", "use_entropy", "dirichlet_prior", "sample_scaler", "kl_loss_weight", "buffer_size")
)
_VELORA_INITS: Final = ("batch_average", "batch_average_once", "random")
_ABOVE_ZERO: Final = (5e-324, math.inf)
_PARTS_OF_LORA: Final[dict[str, dict[str, tuple[float, float]]]] = {
    "arrow_config": {"top_k": _ABOVE_ZERO, "router_temperature": _ABOVE_ZERO},
    "corda_config": {},
    "eva_config": {"rho": (1.0, math.inf), "tau": (0.0, 1.0)},
    "kasa_config": {"beta": (0.0, math.inf), "gamma": (0.0, math.inf)},
    "lora_ga_config": {},
    "monteclora_config": {"num_samples": _ABOVE_ZERO, "dirichlet_prior": _ABOVE_ZERO, "buffer_size": _ABOVE_ZERO},
    "use_bdlora": {},
    "velora_config": {"num_groups": _ABOVE_ZERO, "scale": _ABOVE_ZERO},
}
"""The objects in a LoRA config, and the numbers in them of which PEFT checks the range."""


_BIAS: Final = ("bias",)
_RANKS: Final = ("rank_pattern",)
_BOTH: Final = ("rank_pattern", "alpha_pattern")
_NEVER_NULL: Final = {
    "LORA": (*_BIAS, *_BOTH),
    "ADALORA": _BIAS,
    "LOHA": _BOTH,
    "LOKR": _BOTH,
    "HIRA": _RANKS,
    "DELORA": (*_BIAS, *_RANKS),
    **dict.fromkeys(
        (
            *("BOFT", "C3A", "DEFT", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HRA", "MISS", "OFT", "PVERA"),
            *("RANDLORA", "TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
        ),
        _BIAS,
    ),
}
"""Keys by type that PEFT uses without asking whether they are null."""


def read_config(data: bytes) -> AdapterConfig:
    """Parse the config of an adapter that is pushed. Raises RegistryError `rejected` also for what PEFT refuses."""
    config = parse_config(data)
    if (why := disagreement(config.raw)) is not None:
        raise RegistryError(
            "rejected", f"adapter_config.json {why}.", hint="Correct adapter_config.json and push again."
        )
    return config


def disagreement(document: Mapping[str, Any]) -> str | None:
    """Return why PEFT refuses a config, as the rest of a sentence; None if it does not."""
    task, targets = document.get("task_type"), document.get("target_modules")
    if task is not None and task not in _TASKS:
        return f"has the task_type {str(task)[:40]!r}; PEFT knows {', '.join(_TASKS)} and null"
    for key in ("layers_to_transform", "layers_pattern"):
        if isinstance(targets, str) and document.get(key) is not None and document["peft_type"] != "ADALORA":
            return f"has {key} while target_modules is a pattern; PEFT takes one of them"
    for key in _NEVER_NULL.get(document["peft_type"], ()):
        if key in document and document[key] is None:
            return f"has {key} = null, with which PEFT fails to load it; leave the key out for its default"
    if document.get("layers_pattern") and document.get("layers_to_transform") is None:
        return "has layers_pattern without layers_to_transform"
    if document["peft_type"] == "ADALORA" and (why := _schedule(document)) is not None:
        return why
    if document["peft_type"] in ("LORA", "ADALORA"):
        for key, ranges in _PARTS_OF_LORA.items():
            if (value := document.get(key)) is not None and (why := _part(key, value, ranges)) is not None:
                return why
        if (why := _combination(document)) is not None:
            return why
    if document["peft_type"] == "IA3" and isinstance(targets, list):
        feedforward = document.get("feedforward_modules")
        if isinstance(feedforward, list) and not set(feedforward) <= set(targets):
            return "has feedforward_modules that are not among target_modules"
    return None


def _part(key: str, value: Any, ranges: Mapping[str, tuple[float, float]]) -> str | None:
    if not isinstance(value, dict):
        return f"has {key} = {str(value)[:40]!r}, expected an object or null"
    for name, (least, most) in ranges.items():
        number = value.get(name, least)
        if not isinstance(number, int | float) or not least <= number <= most:
            return f"has {key}.{name} = {str(number)[:40]!r}, which PEFT refuses"
    if key == "monteclora_config" and not value.keys() <= _MONTECLORA:
        unknown = min(value.keys() - _MONTECLORA)
        return f"has {key}.{unknown[:40]}, which PEFT does not know: loading it ends in infinite recursion"
    if key == "velora_config" and value.get("init_type", "random") not in _VELORA_INITS:
        return f"has {key}.init_type = {str(value['init_type'])[:40]!r}, expected one of {', '.join(_VELORA_INITS)}"
    if key == "use_bdlora":
        sides = [value.get(f"target_modules_bd_{side}") or [] for side in "ab"]
        if not all(isinstance(side, list) and all(isinstance(name, str) for name in side) for side in sides):
            return f"has {key} with target modules that are not lists of names"
        if set(sides[0]) & set(sides[1]):
            return f"has {key} with a module among both target_modules_bd_a and target_modules_bd_b"
    return None


def _combination(document: Mapping[str, Any]) -> str | None:
    if document.get("use_dora") and document.get("megatron_config"):
        return "has use_dora with megatron_config, which PEFT does not support together"
    if document.get("lora_bias") and document.get("use_dora"):
        return "has use_dora with lora_bias, which PEFT does not support together"
    if document.get("lora_bias") and document.get("init_lora_weights", True) not in (True, False):
        return "has lora_bias with an init_lora_weights other than true and false, which PEFT does not support together"
    if document["peft_type"] == "ADALORA":
        for key in ("use_dora", "loftq_config"):
            if document.get(key):
                return f"has {key}, which PEFT does not support for AdaLoRA"
    return None


def _schedule(document: Mapping[str, Any]) -> str | None:
    """AdaLoRA's schedule must leave steps in which ranks are reduced. PEFT computes with the numbers as they are.

    A config without total_step is accepted: training is over, and a merge does not need it.
    """
    values = [document.get("total_step", 1 << 62), document.get("orth_reg_weight", 0.5)]
    values += [document.get(key, 0) for key in ("tinit", "tfinal")]
    if not all(isinstance(value, int | float) for value in values):
        return "has a total_step, tinit, tfinal or orth_reg_weight that is not a number"
    total, weight, first, last = values
    if total <= 0 or weight < 0 or first >= total - last:
        return "has a total_step that leaves no step between tinit and tfinal, or a negative orth_reg_weight"
    return None
