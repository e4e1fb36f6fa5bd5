"""The base's weights as float32, block by block, however they are stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from lora_kernels.checkpoint.sources import Source
from lora_kernels.merging.plan import TensorPlan
from lora_kernels.merging.quantized_weights import FourBit, Int8, ThroughNf4
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, decode, storage


class Weights(Protocol):
    """A tensor of the base. For one thread."""

    def read(self, block: Block, out: F32) -> F32:
        """The block's values, written to `out` of the block's shape. Raises RegistryError `corrupt`."""


class StoredWeights:
    """A tensor stored element by element. The raw bytes go through a buffer of its own."""

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


def open_weights(tensor: TensorPlan, source: Source) -> Callable[[], Weights]:
    """Read what the threads that work on a tensor share; what is returned makes a reader of its values before the merge
    for each of them. Raises RegistryError `corrupt`, `rejected` where scales of quantized weights are damaged."""
    if tensor.quantized is not None:
        known = tensor.quantized
        return Int8.open(known, source) if known.scheme == "int8" else FourBit.open(known, source)
    stored = partial(StoredWeights, tensor, source)
    return ThroughNf4.open(tensor, stored) if tensor.through_nf4 else stored
