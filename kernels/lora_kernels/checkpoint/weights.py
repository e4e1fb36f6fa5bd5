"""Weights of a base as float32, block by block."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lora_kernels.checkpoint.sources import Source
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, decode, storage


class Weights(Protocol):
    """A tensor of the base in any storage format. For one thread."""

    def read(self, block: Block, out: F32) -> F32:
        """Write the values of a block to `out` of its shape. Raises RegistryError `corrupt`."""


class StoredWeights:
    """A floating-point tensor at byte `start` of a file. Reuses one buffer for raw bytes."""

    def __init__(self, source: Source, file: str, start: int, dtype: str) -> None:
        self._source = source
        self._file = file
        self._start = start
        self._dtype = dtype
        self._type = storage(dtype)
        self._raw = bytearray()

    def read(self, block: Block, out: F32) -> F32:
        size = block.elements * self._type.itemsize
        if len(self._raw) < size:
            self._raw = bytearray(size)
        raw = memoryview(self._raw)[:size]
        self._source.read_into(self._file, self._start + block.first * self._type.itemsize, raw)
        return decode(np.frombuffer(raw, self._type).reshape(block.shape), self._dtype, out)


class NoWeights:
    """A tensor that the base does not have: zeros, which a replacement overwrites."""

    def read(self, _block: Block, out: F32) -> F32:
        out.fill(0)
        return out
