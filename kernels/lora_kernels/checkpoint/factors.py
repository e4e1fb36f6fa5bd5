"""Tensors of an adapter file, read as float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import Factor
from lora_kernels.checkpoint.sources import Source
from lora_kernels.numeric.dtypes import F32, INTEGERS, Array, Indices, decode, storage

# Tensors of which several weights take a part one after another: A and B of two weights of an expert.
_KEPT: Final = 4


class FactorReader:
    """The weight file of one adapter."""

    def __init__(self, source: Source, file: str) -> None:
        self._source = source
        self._file = file
        self._kept: dict[str, F32] = {}

    def keep(self, factor: Factor) -> F32:
        """As `load`; the last few are held, for the next weights that take a part of the same tensor. Read-only."""
        values = self._kept.get(factor.name)
        if values is None:
            values = self.load(factor)
            values.flags.writeable = False
            kept = [*self._kept.items(), (factor.name, values)]
            self._kept = dict(kept[-_KEPT:])
        return values

    def load(self, factor: Factor) -> F32:
        """The whole tensor, of its own shape. Raises RegistryError `rejected` if a value is not finite."""
        values = np.empty(factor.shape, np.float32)
        self.values(factor, 0, values)
        if not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise RegistryError(
                "rejected",
                f"{factor.name} holds {count} values that are NaN or infinite.",
                hint="Train it again or take an earlier checkpoint; such an adapter destroys the model.",
                tensor=factor.name,
            )
        return values

    def indices(self, factor: Factor, limits: Sequence[int]) -> Indices:
        """The whole tensor, of whole numbers. limits: for each of its first dimension, or for all: what they must be
        below. Raises RegistryError `rejected` if one is not."""
        dtype = INTEGERS.get(factor.dtype)
        if dtype is None:
            raise RegistryError(
                "rejected",
                f"{factor.name} has the type {factor.dtype}; indices are one of {', '.join(INTEGERS)}.",
                tensor=factor.name,
            )
        values: Indices = self.raw(factor, 0, np.empty(factor.shape, dtype)).astype(np.int64)
        for part, limit in zip(values if len(limits) > 1 else [values], limits, strict=True):
            wrong = (part < 0) | (part >= limit)
            if wrong.any():
                raise RegistryError(
                    "rejected",
                    f"{factor.name} names the place {int(part[wrong][0])}; there are {limit}.",
                    hint="Merge an adapter that fits this base.",
                    tensor=factor.name,
                )
        return values

    def values(self, factor: Factor, first: int, out: F32) -> F32:
        """As many elements as `out` has, from the element `first` on, not checked."""
        dtype = storage(factor.dtype)
        raw = np.empty(out.shape, dtype)
        self.raw(factor, first * dtype.itemsize, raw)
        return decode(raw, factor.dtype, out)

    def raw(self, factor: Factor, offset: int, out: Array) -> Array:
        """Bytes of the tensor from `offset` on, into the contiguous `out`."""
        if out.size:
            view = memoryview(out.reshape(-1).view(np.uint8).data)
            self._source.read_into(self._file, factor.start + offset, view)
        return out
