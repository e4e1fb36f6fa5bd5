"""Writers of new weights: rounded to nearest, rounded stochastically, or quantized to NF4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lora_kernels.merging.plan import TensorPlan
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, decode, encode, storage
from lora_kernels.numeric.philox import random_bits, stream_key
from lora_kernels.quantized import blockwise
from lora_kernels.quantized.absmax import NestedAbsmax, PlainAbsmax, compress
from lora_kernels.quantized.codes import NF4, dynamic_map
from lora_kernels.quantized.layout import Nf4Form, nf4_state
from lora_kernels.quantized.stochastic import round_bf16
from lora_kernels.quantized.weights import refuse_nonfinite

U32 = npt.NDArray[np.uint32]


class Writer(Protocol):
    """Encoder of one tensor."""

    head: bytes
    """Bytes before the elements."""

    def size(self, elements: int) -> int:
        """Size of encoded elements in bytes."""

    def encode(self, new: F32, block: Block, out: memoryview, bits: U32) -> None:
        """Encode a block. out: of `size` bytes. bits: scratch, at least one per element."""

    def decode(self, stored: memoryview, block: Block, out: F32) -> F32:
        """Decode stored bytes to exactly what a reader sees."""


class Rounded:
    """Elements rounded one by one: bf16 stochastically if the plan has a seed, else to nearest."""

    head = b""

    def __init__(self, tensor: TensorPlan) -> None:
        self._dtype = tensor.dtype
        self._type = storage(tensor.dtype)
        self._key = stream_key(tensor.seed, tensor.name) if tensor.seed is not None and tensor.dtype == "BF16" else None

    def size(self, elements: int) -> int:
        return elements * self._type.itemsize

    def encode(self, new: F32, block: Block, out: memoryview, bits: U32) -> None:
        stored = np.frombuffer(out, self._type).reshape(block.shape)
        if self._key is None:
            encode(new, self._dtype, stored, bits)
        else:
            round_bf16(new, random_bits(self._key, block.first, block.elements), stored)

    def decode(self, stored: memoryview, block: Block, out: F32) -> F32:
        return decode(np.frombuffer(stored, self._type).reshape(block.shape), self._dtype, out)


class Nf4:
    """Packed codes, preceded by their scales. Blocks start at blocks of the format.

    Stochastic rounding divides by the absmax that a reader decodes, so that it is unbiased; rounding to nearest divides
    by the exact absmax, as bitsandbytes does.
    """

    def __init__(self, tensor: TensorPlan, form: Nf4Form, merged: Iterator[tuple[Block, F32]]) -> None:
        """merged: all new values, for a first pass. Raises RegistryError `rejected` if they are not finite."""
        found = []
        for _, values in merged:
            flat = values.reshape(-1)
            found.append(blockwise.largest(flat, form.blocksize, np.empty_like(flat)))
        absmax = np.concatenate(found) if found else np.empty(0, np.float32)
        refuse_nonfinite(tensor.name, absmax, "The merged weights hold")
        self._form = form
        self._key = stream_key(tensor.seed, tensor.name) if tensor.seed is not None else None
        self._absmax = compress(absmax) if form.nested else PlainAbsmax(absmax)
        self.head = nf4_head(tensor, form, self._absmax)

    def size(self, elements: int) -> int:
        return -(-elements // 2)

    def encode(self, new: F32, block: Block, out: memoryview, bits: U32) -> None:
        values, size = new.reshape(-1), self._form.blocksize
        codes, scratch = np.empty(values.size, np.uint8), bits.view(np.float32)[: values.size]
        if self._key is None:
            blockwise.quantize_nf4(values, blockwise.largest(values, size, scratch), size, codes, scratch)
        else:
            random = random_bits(self._key, block.first, block.elements)
            blockwise.quantize_nf4(values, self._of(block), size, codes, scratch, random=random)
        blockwise.pack_nf4(codes, np.frombuffer(out, np.uint8))

    def decode(self, stored: memoryview, block: Block, out: F32) -> F32:
        packed = np.frombuffer(stored, np.uint8)
        return blockwise.dequantize(packed, self._of(block), NF4, self._form.blocksize, block.first, out)

    def _of(self, block: Block) -> F32:
        return self._absmax.of(*blockwise.block_range(block.first, block.elements, self._form.blocksize))


def nf4_head(tensor: TensorPlan, form: Nf4Form, absmax: PlainAbsmax | NestedAbsmax) -> bytes:
    """The bytes of a weight written as NF4 that precede its codes."""
    parts = [NF4.values.astype("<f4").tobytes()]
    offset = 0.0
    if isinstance(absmax, NestedAbsmax):
        offset = float(absmax.offset)
        parts += [
            absmax.nested.astype("<f4").tobytes(),
            dynamic_map().astype("<f4").tobytes(),
            absmax.codes.tobytes(),
        ]
    else:
        parts.append(absmax.values.astype("<f4").tobytes())
    size = next(shape[0] for name, _, shape in tensor.entries if name.endswith("bitsandbytes__nf4"))
    return b"".join(parts) + nf4_state(tensor.shape, form, offset, size)
