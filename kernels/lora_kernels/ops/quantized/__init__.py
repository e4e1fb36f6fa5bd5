"""Quantized weights in the formats of bitsandbytes 0.50.2 as arguments of operations, and their checks.

NF4 and FP4 in blocks of a tensor's elements, with or without double quantization, and LLM.int8 by row. The formats are
defined in `lora_kernels.quantized`, to whose numpy results these operations are bitwise equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lora_contract.errors import RegistryError
from lora_kernels.quantized.blocksizes import BLOCKSIZES, NESTED_BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Nested:
    """Double quantization: absmax = values[code] * absmax of its block + offset, in float32.

    absmax: float32, one per `blocksize` codes. values: float32 (256,). offset: float32 (), the mean of all absmax.
    """

    absmax: torch.Tensor
    values: torch.Tensor
    offset: torch.Tensor
    blocksize: int = NESTED_BLOCKSIZE


@dataclass(frozen=True, slots=True)
class FourBit:
    """A matrix of 4-bit codes: element = values[code] * absmax of its block, in float32.

    packed: uint8, contiguous, two codes per byte, the first in the high nibble. absmax: one per `blocksize` elements,
    which may straddle rows; float32, or uint8 codes if `nested` is given. values: float32 (16,), by code. shape: (o, i)
    of the matrix.
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, int]
    blocksize: int = 64
    nested: Nested | None = None

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def blocks(self) -> int:
        return -(-self.elements // self.blocksize)


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """A matrix of LLM.int8: element = code * scb of its row / 127. codes: int8 (o, i), any strides. scb: float32
    (o,)."""

    codes: torch.Tensor
    scb: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        return self.codes.device


Quantized = FourBit | Int8Rows


def check_quantized(weight: Quantized, *, name: str = "W") -> None:
    """Check each part against the shape. Raises RegistryError `invalid-request` that names the part."""
    if isinstance(weight, FourBit):
        check_four_bit(weight, name=name)
        return
    if weight.codes.ndim != 2 or weight.codes.dtype != torch.int8:
        raise refused(
            f"The codes of {name} are {tuple(weight.codes.shape)} {weight.codes.dtype}; expected an int8 matrix."
        )
    _checker(name, weight.device)("scb", weight.scb, (weight.codes.shape[0],), torch.float32)


def check_four_bit(weight: FourBit, *, name: str = "W") -> None:
    """Check each part against the shape. Raises RegistryError `invalid-request` that names the part."""
    check_shape(weight.shape, name=name)
    check_blocksize(weight.blocksize, name=name)
    check = _checker(name, weight.device)
    # Checkpoints store the bytes as (n, 1).
    check("packed", weight.packed.reshape(-1), (-(-weight.elements // 2),), torch.uint8)
    if not weight.packed.is_contiguous():
        raise refused(f"`packed` of {name} is not contiguous; expected a contiguous tensor.")
    check("values", weight.values, (16,), torch.float32)
    nested = weight.nested
    check("absmax", weight.absmax, (weight.blocks,), torch.float32 if nested is None else torch.uint8)
    if nested is not None:
        check_blocksize(nested.blocksize, name=f"the absmax of {name}")
        check("nested.absmax", nested.absmax, (-(-weight.blocks // nested.blocksize),), torch.float32)
        check("nested.values", nested.values, (256,), torch.float32)
        check("nested.offset", nested.offset, (), torch.float32)


def check_shape(shape: tuple[int, ...], *, name: str) -> None:
    """Raise RegistryError `invalid-request` unless the shape is that of a matrix."""
    if len(shape) != 2 or min(shape) < 0:
        raise refused(f"{name} has the shape {tuple(shape)}; expected a matrix (o, i).")


def check_blocksize(blocksize: int, *, name: str) -> None:
    """Raise RegistryError `invalid-request` unless bitsandbytes supports the blocksize."""
    if blocksize not in BLOCKSIZES:
        raise refused(f"The blocksize of {name} is {blocksize}; expected one of {', '.join(map(str, BLOCKSIZES))}.")


def refused(message: str) -> RegistryError:
    return RegistryError("invalid-request", message, hint="Pass the parts of the weight as stored in the checkpoint.")


def _checker(name: str, device: torch.device) -> Callable[[str, torch.Tensor, tuple[int, ...], torch.dtype], None]:
    def check(part: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device or not tensor.is_contiguous():
            layout = "" if tensor.is_contiguous() else ", not contiguous"
            raise refused(
                f"`{part}` of {name} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}{layout}; "
                f"expected {shape} {dtype} on {device}."
            )

    return check
