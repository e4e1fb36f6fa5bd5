"""Dequantization in plain torch."""

from __future__ import annotations

import torch

from lora_kernels.ops.quantized import FourBit, Quantized
from lora_kernels.quantized.int8 import UNIT


def dequantize(weight: Quantized, compute: torch.dtype = torch.float32) -> torch.Tensor:
    """The matrix (o, i) of a checked weight. compute: dtype of the result and of all products and sums."""
    if not isinstance(weight, FourBit):
        return weight.codes.to(compute) * weight.scb.to(compute)[:, None] * float(UNIT)
    packed = weight.packed.reshape(-1)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1)[: weight.elements]
    scale = absmax(weight, compute).repeat_interleave(weight.blocksize)[: weight.elements]
    return (weight.values.to(compute)[codes.long()] * scale).reshape(weight.shape)


def absmax(weight: FourBit, compute: torch.dtype = torch.float32) -> torch.Tensor:
    """The dequantized absmax, one per block."""
    nested = weight.nested
    if nested is None:
        return weight.absmax.to(compute)
    scale = nested.absmax.to(compute).repeat_interleave(nested.blocksize)[: weight.blocks]
    return nested.values.to(compute)[weight.absmax.long()] * scale + nested.offset.to(compute)
