"""Tensors of an adapter file, read as float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import Factor
from lora_kernels.checkpoint.sources import Source
from lora_kernels.numeric.dtypes import F32, INTEGERS, Array, Indices, decode, storage

# Tensors in the cache: A and B of two weights of an expert, of which consecutive weights use different parts.
_MAX_CACHED: Final = 4


class FactorReader:
    """The weight file of one adapter."""

    def __init__(self, source: Source, file: str) -> None:
        self._source = source
        self._file = file
        self._cache: dict[str, F32] = {}

    def load_cached(self, factor: Factor) -> F32:
        """Like `load`, with the last few tensors cached for further weights that use a part of them. Read-only."""
        values = self._cache.get(factor.name)
        if values is None:
            values = self.load(factor)
            values.flags.writeable = False
            cached = [*self._cache.items(), (factor.name, values)]
            self._cache = dict(cached[-_MAX_CACHED:])
        return values

    def load(self, factor: Factor) -> F32:
        """The whole tensor in its own shape. Raises RegistryError `rejected` if a value is not finite."""
        values = np.empty(factor.shape, np.float32)
        self.values(factor, 0, values)
        if not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise RegistryError(
                "rejected",
                f"{factor.name} has {count} values that are NaN or infinite.",
                hint="Train the adapter again or use an earlier checkpoint: merged, it would destroy the model.",
                tensor=factor.name,
            )
        return values

    def indices(self, factor: Factor, limits: Sequence[int]) -> Indices:
        """The whole tensor as indices. limits: exclusive upper bounds, one for each entry of the first dimension or one
        for all. Raises RegistryError `rejected` if an index is out of range."""
        dtype = INTEGERS.get(factor.dtype)
        if dtype is None:
            raise RegistryError(
                "rejected",
                f"{factor.name} has the dtype {factor.dtype}; indices must have one of {', '.join(INTEGERS)}.",
                tensor=factor.name,
            )
        values: Indices = self.raw(factor, 0, np.empty(factor.shape, dtype)).astype(np.int64)
        for part, limit in zip(values if len(limits) > 1 else [values], limits, strict=True):
            wrong = (part < 0) | (part >= limit)
            if wrong.any():
                raise RegistryError(
                    "rejected",
                    f"{factor.name} has the index {int(part[wrong][0])}, expected 0 to {limit - 1}.",
                    hint="Merge an adapter that fits this base.",
                    tensor=factor.name,
                )
        return values

    def values(self, factor: Factor, first: int, out: F32) -> F32:
        """Fill `out` with the elements from `first` on. They are not checked."""
        dtype = storage(factor.dtype)
        raw = np.empty(out.shape, dtype)
        self.raw(factor, first * dtype.itemsize, raw)
        return decode(raw, factor.dtype, out)

    def raw(self, factor: Factor, offset: int, out: Array) -> Array:
        """Fill the contiguous `out` with bytes of the tensor from `offset` on."""
        if out.size:
            view = memoryview(out.reshape(-1).view(np.uint8).data)
            self._source.read_into(self._file, factor.start + offset, view)
        return out
