"""Weights of NVIDIA ModelOpt: FP8 and NVFP4.

NVFP4 consists of `M.weight` (two codes a byte), `M.weight_scale` and `M.weight_scale_2`.
"""

from __future__ import annotations

from typing import Final

from lora_kernels.quantized.compressed import floats
from lora_kernels.quantized.layout import Quantized
from lora_kernels.quantized.parts import QuantizedBase, reject, unread
from lora_kernels.quantized.scaled import read_fp8

_READ: Final = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "MIXED_PRECISION")


def read_modelopt(known: QuantizedBase) -> dict[str, Quantized]:
    """Raises RegistryError `unsupported` for other algorithms, `rejected` for damaged weights."""
    algorithm = known.config.get("quant_algo", "FP8")
    if algorithm not in _READ:
        unread(f"its weights have the format {str(algorithm)[:40]!r} of ModelOpt")
    found = read_fp8(known)
    for name, tensor in known.tensors.items():
        path, _, leaf = name.rpartition(".")
        scales, factor = (known.tensors.get(f"{path}.{end}") for end in ("weight_scale", "weight_scale_2"))
        if leaf == "weight" and tensor.dtype == "U8" and scales is not None:
            if factor is None:
                reject(name, f"has no {path}.weight_scale_2")
            shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
            found[name] = floats(known, name, shape, tensor, scales, factor, divided=False)
    return found
