"""What bitsandbytes makes of its own tensors, as its tables have it on every processor."""

from __future__ import annotations

from typing import Any

import torch


def dequantized(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """packed: uint8, two codes a byte, with their `QuantState`. Returns what it stands for, in `state.dtype`.

    FP4's table has two zeros without a sign; without AVX-512 bitsandbytes gives one to the second, which is taken off.
    """
    from bitsandbytes.functional import dequantize_4bit

    found: torch.Tensor = dequantize_4bit(packed, state)
    if state.quant_type == "fp4":
        codes = torch.stack((packed >> 4, packed & 15), dim=-1).reshape(-1)[: found.numel()].reshape(found.shape)
        found[(codes == 8) & (found == 0)] = 0.0
    return found
