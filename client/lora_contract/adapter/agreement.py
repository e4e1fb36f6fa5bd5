"""What PEFT refuses when it reads a config whose values have the right types one by one. Read from peft 0.21.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lora_contract.adapter.config import AdapterConfig, parse_config
from lora_contract.errors import RegistryError

_TASKS: Final = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
_PARTS_OF_LORA: Final = (
    *("arrow_config", "corda_config", "eva_config", "kasa_config", "lora_ga_config", "monteclora_config"),
    *("use_bdlora", "velora_config"),
)


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
    if document.get("layers_pattern") and document.get("layers_to_transform") is None:
        return "has layers_pattern without layers_to_transform"
    if document["peft_type"] == "ADALORA" and (why := _schedule(document)) is not None:
        return why
    if document["peft_type"] in ("LORA", "ADALORA"):
        for key in _PARTS_OF_LORA:
            if document.get(key) is not None and not isinstance(document[key], dict):
                return f"has {key} = {str(document[key])[:40]!r}, expected an object or null"
        if document.get("use_dora") and document.get("megatron_config"):
            return "has use_dora with megatron_config, which PEFT does not support together"
    if document["peft_type"] == "IA3" and isinstance(targets, list):
        feedforward = document.get("feedforward_modules")
        if isinstance(feedforward, list) and not set(feedforward) <= set(targets):
            return "has feedforward_modules that are not among target_modules"
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
