"""Readers of quantized weights, and of full-precision weights after quantizing and dequantizing.

The scales of a tensor are read once: one or four bytes per block of 64, or four per row for int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.sources import Source
from lora_kernels.checkpoint.weights import Weights
from lora_kernels.numeric.blocks import BLOCK, Block
from lora_kernels.numeric.dtypes import F32
from lora_kernels.quantized import blockwise, int8
from lora_kernels.quantized.absmax import Absmax, NestedAbsmax, PlainAbsmax, compress
from lora_kernels.quantized.codes import CODEBOOKS, NF4, U8
from lora_kernels.quantized.layout import Nf4Form, Quantized, StoredPart

QLORA: Final = Nf4Form()
"""Blocks of 64 and double quantization, as in the QLoRA paper and most trainers."""


class FourBitWeights:
    """NF4 or FP4 of bitsandbytes: code * absmax in float32, before the rounding of bitsandbytes."""

    def __init__(self, known: Quantized, absmax: Absmax, source: Source) -> None:
        self._known = known
        self._absmax = absmax
        self._source = source

    @classmethod
    def open(cls, known: Quantized, source: Source) -> Callable[[], FourBitWeights]:
        """Read the scales. Raises RegistryError `rejected` if the codebook is not that of the scheme."""
        return partial(cls, known, read_absmax(known, source), source)

    def read(self, block: Block, out: F32) -> F32:
        known = self._known
        start, stop = blockwise.packed_range(block.first, block.elements)
        raw = np.empty(stop - start, np.uint8)
        self._source.read_into(known.packed.file, known.packed.start + start, memoryview(raw.data))
        absmax = self._absmax.of(*blockwise.block_range(block.first, block.elements, known.blocksize))
        return blockwise.dequantize(raw, absmax, CODEBOOKS[known.scheme], known.blocksize, block.first, out)


class Int8Weights:
    """LLM.int8 of bitsandbytes."""

    def __init__(self, known: Quantized, scb: F32, source: Source) -> None:
        self._known = known
        self._scb = scb
        self._source = source

    @classmethod
    def open(cls, known: Quantized, source: Source) -> Callable[[], Int8Weights]:
        return partial(cls, known, read_part(source, known.absmax, np.dtype("<f4")), source)

    def read(self, block: Block, out: F32) -> F32:
        raw = np.empty(block.shape, np.int8)
        view = memoryview(raw.reshape(-1).view(np.uint8).data)
        self._source.read_into(self._known.packed.file, self._known.packed.start + block.first, view)
        return int8.dequantize(raw, self._scb[block.r0 : block.r1], out)


class WeightsThroughNf4:
    """Full-precision weights, quantized to NF4 with double quantization and dequantized block by block."""

    def __init__(self, open_stored: Callable[[], Weights], absmax: Absmax, elements: int) -> None:
        self._stored = open_stored()
        self._absmax = absmax
        self._elements = elements

    @classmethod
    def open(
        cls, name: str, shape: tuple[int, ...], open_stored: Callable[[], Weights]
    ) -> Callable[[], WeightsThroughNf4]:
        """Read the weight once, since double quantization needs the mean of all absmax."""
        elements = math.prod(shape)
        stored, found = open_stored(), []
        for first in range(0, elements, BLOCK):
            block = _row(first, min(first + BLOCK, elements), elements)
            values = stored.read(block, np.empty(block.shape, np.float32)).reshape(-1)
            found.append(blockwise.largest(values, QLORA.blocksize, np.empty_like(values)))
        absmax = np.concatenate(found) if found else np.empty(0, np.float32)
        refuse_nonfinite(name, absmax, "The base tensor holds")
        return partial(cls, open_stored, compress(absmax), elements)

    def read(self, block: Block, out: F32) -> F32:
        size = QLORA.blocksize
        start, stop = blockwise.block_range(block.first, block.elements, size)
        around = _row(start * size, min(stop * size, self._elements), self._elements)
        values = self._stored.read(around, np.empty(around.shape, np.float32)).reshape(-1)
        scratch, codes = np.empty_like(values), np.empty(values.size, np.uint8)
        blockwise.quantize_nf4(values, blockwise.largest(values, size, scratch), size, codes, scratch)
        np.take(NF4.values, codes, out=values, mode="clip")
        blockwise.scale(values, self._absmax.of(start, stop), size, 0)
        first = block.first - around.first
        np.copyto(out, values[first : first + block.elements].reshape(block.shape))
        return out


def refuse_nonfinite(name: str, absmax: F32, what: str) -> None:
    """Raise RegistryError `rejected` if the absmax of a block is not finite."""
    count = int(np.count_nonzero(~np.isfinite(absmax)))
    if count:
        raise RegistryError(
            "rejected",
            f"{name}: {what} NaN or infinite values in {count} of {absmax.size} blocks, which cannot be quantized.",
            hint="Merge without NF4 to find the cause, or register an undamaged copy of the base.",
            tensor=name,
        )


def _row(first: int, stop: int, elements: int) -> Block:
    """Elements of a tensor viewed as one row."""
    return Block(0, 1, first, stop, elements)


def read_absmax(known: Quantized, source: Source) -> PlainAbsmax | NestedAbsmax:
    """The scales of 4-bit codes. Raises RegistryError `rejected` if the codebook is not that of the scheme."""
    assert known.values is not None
    book = read_part(source, known.values, np.dtype("<f4"))
    if book.tobytes() != CODEBOOKS[known.scheme].values.tobytes():
        raise RegistryError(
            "rejected",
            f"{known.values.name} is not the codebook of {known.scheme}.",
            hint="Save the quantized model again with transformers, or merge onto the full-precision base.",
            tensor=known.values.name,
        )
    if known.nested is None:
        return PlainAbsmax(read_part(source, known.absmax, np.dtype("<f4")))
    nested = known.nested
    codes: U8 = read_part(source, known.absmax, np.dtype("u1"))
    scales, values = (read_part(source, part, np.dtype("<f4")) for part in (nested.absmax, nested.values))
    return NestedAbsmax(codes, scales, values, np.float32(nested.offset), nested.blocksize)


def read_part(source: Source, part: StoredPart, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The elements of a part, flat. Raises RegistryError `corrupt` if the file is too short."""
    raw = bytearray(part.end - part.start)
    source.read_into(part.file, part.start, memoryview(raw))
    return np.frombuffer(raw, dtype)
