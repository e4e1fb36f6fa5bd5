"""Check of adapters with virtual tokens: their tensor against the base and the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.slots import Shapes


def prompt_fault(
    config: AdapterConfig, shapes: Shapes, width: int | None, base_config: Mapping[str, Any]
) -> str | None:
    """The mismatch of an adapter with virtual tokens, as a clause; None if there is none. width: of the base's input
    embedding."""
    raw = config.raw
    shape = shapes.get("prompt_embeddings")
    if shape is None:
        return "prompt_embeddings is missing"
    tokens, copies = raw.get("num_virtual_tokens"), raw.get("num_transformer_submodules")
    if config.peft_type == "CPT" and isinstance(raw.get("cpt_token_ids"), list):
        tokens = len(raw["cpt_token_ids"])
    if type(tokens) is not int or len(shape) != 2:
        return f"prompt_embeddings has the shape {list(shape)} for {tokens!r} virtual tokens"
    if shape[0] not in (tokens, tokens * (copies if type(copies) is int else 1)):
        return f"prompt_embeddings has {shape[0]} rows, expected {tokens} virtual tokens"
    if config.peft_type not in ("PREFIX_TUNING", "CARTRIDGE"):
        return None if width in (None, shape[1]) else f"prompt_embeddings has {shape[1]} columns, expected {width}"
    layers, size = raw.get("num_layers"), raw.get("token_dim")
    if type(layers) is not int or type(size) is not int or layers * 2 * size != shape[1]:
        return (
            f"prompt_embeddings has {shape[1]} columns, expected num_layers * 2 * token_dim = {layers!r} * 2 * {size!r}"
        )
    stack = base_config.get("num_hidden_layers")
    if type(stack) is int and layers != stack:
        return f"it has prefixes for {layers} layers, the base has {stack}"
    return None
