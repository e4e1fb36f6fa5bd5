"""Quantized weights by the names of their tensors: the modules that they belong to, and shapes as far as headers tell.

Enough for the checks of an adapter. A merge validates the tensors and reads them (`lora_kernels.quantized`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lora_contract.base import BaseTensor

PACKED: Final = ("qweight", "weight_packed")
"""Last components of names whose tensor stands for the weight of a linear layer."""
FILES: Final = frozenset(
    {"hf_quant_config.json", "quant_config.json", "quantization_config.json", "quantize_config.json"}
)
"""Files beside config.json that describe the quantization of a checkpoint."""
_KEYS: Final = ("quantization_config", "compression_config")
_NESTED: Final = ("text_config", "llm_config", "language_config")

Sizes = tuple[int | None, int | None]


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a checkpoint's quantization in its config.json; empty if there is none."""
    for part in (config, *(config.get(key) for key in _NESTED)):
        for key in _KEYS:
            found = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(found, dict) and found:
                return found
    return {}


def method_of(config: Mapping[str, Any]) -> str:
    """The method of a checkpoint's quantization by the name that transformers uses; empty if there is none."""
    found = quantization_of(config)
    method = found.get("quant_method")
    if method is None and ("load_in_4bit" in found or "load_in_8bit" in found):
        return "bitsandbytes"
    return method.lower() if isinstance(method, str) else ""


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a checkpoint whose weights are no longer quantized."""
    kept = {key: value for key, value in config.items() if key not in _KEYS}
    for key in _NESTED:
        part = kept.get(key)
        if isinstance(part, dict) and any(name in part for name in _KEYS):
            kept[key] = {name: value for name, value in part.items() if name not in _KEYS}
    return kept


def packed_sizes(path: str, leaf: str, tensors: Mapping[str, BaseTensor]) -> Sizes:
    """(out, in) of a linear layer whose weight is stored as `{path}.{leaf}`; None for what headers do not tell."""
    codes = tensors[f"{path}.{leaf}"]
    if len(codes.shape) != 2:  # noqa: PLR2004
        return None, None
    if leaf == "weight_packed":
        return codes.shape[0], 2 * codes.shape[1] if codes.dtype == "U8" else None
    scales, order = tensors.get(f"{path}.scales"), tensors.get(f"{path}.g_idx")
    if scales is None or len(scales.shape) != 2 or scales.shape[0] > codes.shape[0]:  # noqa: PLR2004
        return None, None
    out = scales.shape[1]
    if order is not None:
        return out, order.shape[0] if len(order.shape) == 1 else None
    zeros = tensors.get(f"{path}.qzeros")
    if zeros is not None and scales.shape[0] == codes.shape[0] and zeros.shape == (codes.shape[0], out // 8):
        return codes.shape[0], 8 * codes.shape[1]  # the layout GEMV of AWQ
    # AWQ packs along the outputs, GPTQ along the inputs.
    return (out, codes.shape[0]) if codes.shape[1] * 8 == out else (out, None)
