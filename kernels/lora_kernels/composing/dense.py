"""Elementwise methods on the updates D_i.

They compute a module in blocks of rows and hold at most two float32 copies of it, whatever the number of adapters. The
result has no low rank and is truncated to its leading singular triplets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Final

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.composing.elements import (
    Bits,
    at_least,
    disjoint_mean,
    drop_out,
    magnitude_bits,
    nth_largest,
    weighted_sum,
)
from lora_kernels.composing.module import Compose, Composed, ComposeSettings, Summands, from_triplets
from lora_kernels.linalg.krylov import dense_triplets, host_rows
from lora_kernels.linalg.operators import MakeOperator
from lora_kernels.numeric import philox
from lora_kernels.numeric.dtypes import F32, Indices

# Elements in a block of one update; the blocks of a few adapters fit in a core's cache.
_BLOCK: Final = 1 << 16
# Modules with more elements (128 MiB as float32) are composed one at a time, whatever the number of threads.
_LARGE: Final = 1 << 25
_large_lock: Final = threading.Lock()

Merged = Callable[[int, int], F32]
"""Rows r0:r1 of the merged update."""


class Deltas:
    """The updates D_i of a module, (rows, columns), computed from their factors in ranges of rows."""

    def __init__(self, summands: Summands) -> None:
        self.summands = summands
        self._factors = [
            (summand.module.b * np.float32(summand.module.scale), summand.module.a) for summand in summands
        ]
        self.rows, self.columns = summands[0].module.b.shape[0], summands[0].module.a.shape[1]
        self.size = self.rows * self.columns
        self.weights = [summand.weight for summand in summands]

    def ranges(self) -> Iterator[tuple[int, int]]:
        step = max(_BLOCK // max(self.columns, 1), 1)
        for r0 in range(0, self.rows, step):
            yield r0, min(r0 + step, self.rows)

    def of(self, index: int, r0: int, r1: int) -> F32:
        b, a = self._factors[index]
        return np.matmul(b[r0:r1], a, out=np.empty((r1 - r0, self.columns), np.float32))

    def all(self, r0: int, r1: int) -> list[F32]:
        return [self.of(index, r0, r1) for index in range(len(self.summands))]

    def limits(self, index: int, counts: Sequence[int]) -> list[np.float32]:
        """The magnitudes of the `counts`-th largest elements of an update."""
        bits = np.empty((self.rows, self.columns), np.int32)
        for r0, r1 in self.ranges():
            bits[r0:r1] = magnitude_bits(self.of(index, r0, r1))
        return [nth_largest(bits.reshape(-1), count) for count in counts]


def _ties(deltas: Deltas, settings: ComposeSettings) -> Merged:
    trimmed = _trimmed(deltas, settings)
    return lambda r0, r1: disjoint_mean(trimmed(r0, r1), deltas.weights, settings.majority)


def _magnitude_prune(deltas: Deltas, settings: ComposeSettings) -> Merged:
    trimmed = _trimmed(deltas, settings)
    return lambda r0, r1: weighted_sum(trimmed(r0, r1), deltas.weights)


def _dare_linear(deltas: Deltas, settings: ComposeSettings) -> Merged:
    dropped = _dropped(deltas, settings)
    return lambda r0, r1: weighted_sum(dropped(r0, r1), deltas.weights)


def _dare_ties(deltas: Deltas, settings: ComposeSettings) -> Merged:
    dropped = _dropped(deltas, settings)
    return lambda r0, r1: disjoint_mean(dropped(r0, r1), deltas.weights, settings.majority)


def _breadcrumbs(deltas: Deltas, settings: ComposeSettings) -> Merged:
    outliers = int(settings.number("gamma") * deltas.size)
    counts = outliers, outliers + int(settings.density * deltas.size)
    limits = [deltas.limits(index, counts) for index in range(len(deltas.summands))]
    weights = [settings.scaling * weight for weight in deltas.weights]

    def merged(r0: int, r1: int) -> F32:
        values = [
            at_least(value, low) * (np.abs(value) < high)
            for value, (high, low) in zip(deltas.all(r0, r1), limits, strict=True)
        ]
        return weighted_sum(values, weights)

    return merged


def _della(deltas: Deltas, settings: ComposeSettings) -> Merged:
    epsilon, columns = settings.number("epsilon"), deltas.columns
    # By rank of the magnitude within a row, ascending; their mean is the density.
    probabilities = settings.density + epsilon * ((np.arange(columns) + 0.5) / columns - 0.5)
    keys = [settings.key(summand, "D") for summand in deltas.summands]

    def merged(r0: int, r1: int) -> F32:
        values = []
        for value, key, weight in zip(deltas.all(r0, r1), keys, deltas.weights, strict=True):
            probability = probabilities[_ranks(value)]
            kept = philox.uniform(key, r0 * columns, value.size).reshape(value.shape) < probability
            values.append(value * np.float32(weight) * kept / probability.astype(np.float32))
        return disjoint_mean(values, [settings.scaling] * len(values), settings.majority)

    return merged


def _ranks(values: F32) -> Indices:
    """The rank of each element's magnitude in its row, ascending from 0; ties in the order of columns."""
    columns = np.arange(values.shape[1], dtype=np.int64)
    order = np.sort((magnitude_bits(values).astype(np.int64) << 32) | columns, axis=1) & 0xFFFFFFFF
    ranks: Indices = np.empty(values.shape, np.int64)
    np.put_along_axis(ranks, order, np.broadcast_to(columns, values.shape), axis=1)
    return ranks


def _sce(deltas: Deltas, settings: ComposeSettings) -> Merged:
    def weighted(r0: int, r1: int) -> list[F32]:
        return [value * np.float32(weight) for value, weight in zip(deltas.all(r0, r1), deltas.weights, strict=True)]

    bits: Bits = np.empty((deltas.rows, deltas.columns), np.int32)
    for r0, r1 in deltas.ranges():
        bits[r0:r1] = magnitude_bits(np.var(weighted(r0, r1), axis=0))
    limit = nth_largest(bits.reshape(-1), int(settings.density * deltas.size))
    del bits
    squares = np.zeros(len(deltas.summands))
    for r0, r1 in deltas.ranges():
        values = weighted(r0, r1)
        selected = np.var(values, axis=0) >= limit
        squares += [
            np.square(value, where=selected, out=np.zeros_like(value)).sum(dtype=np.float64) for value in values
        ]
    energy = squares.sum()
    shares = squares / energy if energy > 0 else squares

    def merged(r0: int, r1: int) -> F32:
        values = weighted(r0, r1)
        selected = np.var(values, axis=0) >= limit
        positive = weighted_sum(values, [1.0] * len(values)) >= 0
        total, weight = np.zeros_like(values[0]), np.zeros_like(values[0])
        for value, share in zip(values, shares, strict=True):
            agrees = np.where(positive, value > 0, value < 0) & selected
            total += value * np.float32(share) * agrees
            weight += np.float32(share) * agrees
        return np.float32(settings.scaling) * np.divide(total, weight, where=weight > 0, out=np.zeros_like(total))

    return merged


def _trimmed(deltas: Deltas, settings: ComposeSettings) -> Callable[[int, int], list[F32]]:
    count = int(settings.density * deltas.size)
    limits = [deltas.limits(index, [count])[0] for index in range(len(deltas.summands))]
    return lambda r0, r1: [at_least(value, limit) for value, limit in zip(deltas.all(r0, r1), limits, strict=True)]


def _dropped(deltas: Deltas, settings: ComposeSettings) -> Callable[[int, int], list[F32]]:
    keys = [settings.key(summand, "D") for summand in deltas.summands]
    return lambda r0, r1: [
        drop_out(value, key, r0 * deltas.columns, settings.density)
        for value, key in zip(deltas.all(r0, r1), keys, strict=True)
    ]


METHODS: Final[dict[str, Callable[[Deltas, ComposeSettings], Merged]]] = {
    "ties_svd": _ties,
    "dare_linear_svd": _dare_linear,
    "dare_ties_svd": _dare_ties,
    "magnitude_prune_svd": _magnitude_prune,
    "breadcrumbs": _breadcrumbs,
    "della": _della,
    "sce": _sce,
}
"""The merged update of each method, by ranges of rows."""


def merged_update(method: str, deltas: Deltas, settings: ComposeSettings) -> F32:
    """The merged update (rows, columns) of a method."""
    merged = METHODS[method](deltas, settings)
    out = np.empty((deltas.rows, deltas.columns), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for r0, r1 in deltas.ranges():
            out[r0:r1] = merged(r0, r1)
    return out


def truncate(
    update: F32, summands: Summands, settings: ComposeSettings, *, operator: MakeOperator = host_rows
) -> Composed:
    """The leading triplets of a merged update. operator: see `dense_triplets`. Raises RegistryError `rejected` if the
    update exceeds the range of float32."""
    name = summands[0].module.module
    try:
        found = dense_triplets(update, settings.rank, name=name, operator=operator)
    except ValueError as error:
        raise RegistryError(
            "rejected",
            f"The composed update of {name} exceeds the range of float32.",
            hint="Choose smaller weights.",
            module=name,
        ) from error
    return from_triplets(found.left, found.singular, found.right, found.energy, settings.clamp)


def _dense(method: str) -> Compose:
    def compose(summands: Summands, settings: ComposeSettings) -> Composed:
        deltas = Deltas(summands)
        with _large_lock if deltas.size > _LARGE else nullcontext():
            return truncate(merged_update(method, deltas, settings), summands, settings)

    return compose


DENSE: Final[dict[str, Compose]] = {method: _dense(method) for method in METHODS}
