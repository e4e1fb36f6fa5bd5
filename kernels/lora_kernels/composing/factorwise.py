"""Methods on the factors A and B separately, as PEFT's `add_weighted_adapter` defines them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np

from lora_kernels.composing.elements import disjoint_mean, drop_out, trim, weighted_sum
from lora_kernels.composing.module import Compose, Composed, ComposeSettings, Summand, Summands
from lora_kernels.numeric.dtypes import F32

Half = Literal["A", "B"]
Sparsify = Callable[[F32, Summand, Half, ComposeSettings], F32]
Combine = Callable[[Sequence[F32], Sequence[float], ComposeSettings], F32]


def cat(summands: Summands, settings: ComposeSettings) -> Composed:
    """The exact sum, by concatenation of the factors."""
    del settings
    a = np.concatenate([np.float32(summand.coefficient) * summand.module.a for summand in summands])
    return Composed(np.concatenate([summand.module.b for summand in summands], axis=1), a)


def _factorwise(sparsify: Sparsify, combine: Combine) -> Compose:
    def compose(summands: Summands, settings: ComposeSettings) -> Composed:
        rank = max(summand.module.rank for summand in summands)
        roots = [math.sqrt(abs(summand.coefficient)) for summand in summands]
        signed = [math.copysign(root, summand.coefficient) for root, summand in zip(roots, summands, strict=True)]
        # Sparsified before padding, so that the density refers to the factor's own size.
        a = [_padded(sparsify(summand.module.a, summand, "A", settings), rank, 0) for summand in summands]
        b = [_padded(sparsify(summand.module.b, summand, "B", settings), rank, 1) for summand in summands]
        return Composed(combine(b, roots, settings), combine(a, signed, settings))

    return compose


def _padded(values: F32, rank: int, axis: int) -> F32:
    missing = rank - values.shape[axis]
    if missing == 0:
        return values
    return np.pad(values, [(0, missing if dimension == axis else 0) for dimension in (0, 1)])


def _unchanged(values: F32, summand: Summand, half: Half, settings: ComposeSettings) -> F32:
    del summand, half, settings
    return values


def _trimmed(values: F32, summand: Summand, half: Half, settings: ComposeSettings) -> F32:
    del summand, half
    return trim(values, settings.density)


def _dropped(values: F32, summand: Summand, half: Half, settings: ComposeSettings) -> F32:
    return drop_out(values, settings.key(summand, half), 0, settings.density)


def _sum(values: Sequence[F32], weights: Sequence[float], settings: ComposeSettings) -> F32:
    del settings
    return weighted_sum(values, weights)


def _vote(values: Sequence[F32], weights: Sequence[float], settings: ComposeSettings) -> F32:
    return disjoint_mean(values, weights, settings.majority)


FACTORWISE: Final[dict[str, Compose]] = {
    "cat": cat,
    "linear": _factorwise(_unchanged, _sum),
    "ties": _factorwise(_trimmed, _vote),
    "dare_linear": _factorwise(_dropped, _sum),
    "dare_ties": _factorwise(_dropped, _vote),
    "magnitude_prune": _factorwise(_trimmed, _sum),
}
