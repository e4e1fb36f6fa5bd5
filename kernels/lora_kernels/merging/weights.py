"""The base's weights as float32, block by block, however they are stored."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lora_kernels.merging.blocks import Block
from lora_kernels.merging.numerics import F32, decode, storage
from lora_kernels.merging.plan import TensorPlan
from lora_kernels.merging.sources import Source


class Weights(Protocol):
    """A tensor of the base."""

    def read(self, block: Block, out: F32) -> F32:
        """The block's values, written to `out` of the block's shape. Raises RegistryError `corrupt`."""


class StoredWeights:
    """A tensor stored element by element. For one thread: the raw bytes go through a buffer of its own."""

    def __init__(self, tensor: TensorPlan, source: Source) -> None:
        self._tensor = tensor
        self._source = source
        self._type = storage(tensor.source_dtype)
        self._raw = bytearray()

    def read(self, block: Block, out: F32) -> F32:
        size = block.elements * self._type.itemsize
        if len(self._raw) < size:
            self._raw = bytearray(size)
        raw = memoryview(self._raw)[:size]
        tensor = self._tensor
        self._source.read_into(tensor.source_file, tensor.source_start + block.first * self._type.itemsize, raw)
        return decode(np.frombuffer(raw, self._type).reshape(block.shape), tensor.source_dtype, out)


def weights_of(tensor: TensorPlan, source: Source) -> Weights:
    """The reader of a tensor's values before the merge."""
    return StoredWeights(tensor, source)
