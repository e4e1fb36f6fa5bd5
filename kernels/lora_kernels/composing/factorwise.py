"""Methods on the factors A and B apart, as PEFT's `add_weighted_adapter` defines them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np

from lora_kernels.composing.elements import disjoint_mean, drop_out, trim, weighted_sum
from lora_kernels.composing.module import Compose, Composed, ComposeSettings, Part, Parts
from lora_kernels.numeric.dtypes import F32

Half = Literal["A", "B"]
Sparsify = Callable[[F32, Part, Half, ComposeSettings], F32]
Combine = Callable[[Sequence[F32], Sequence[float], ComposeSettings], F32]


def cat(parts: Parts, settings: ComposeSettings) -> Composed:
    """The exact sum, its factors side by side."""
    del settings
    a = np.concatenate([np.float32(part.coefficient) * part.module.a for part in parts])
    return Composed(np.concatenate([part.module.b for part in parts], axis=1), a)


def _factorwise(sparsify: Sparsify, combine: Combine) -> Compose:
    def compose(parts: Parts, settings: ComposeSettings) -> Composed:
        rank = max(part.module.rank for part in parts)
        roots = [math.sqrt(abs(part.coefficient)) for part in parts]
        signed = [math.copysign(root, part.coefficient) for root, part in zip(roots, parts, strict=True)]
        # Trimmed at their own size; zeros that pad a smaller rank change no update.
        a = [_padded(sparsify(part.module.a, part, "A", settings), rank, 0) for part in parts]
        b = [_padded(sparsify(part.module.b, part, "B", settings), rank, 1) for part in parts]
        return Composed(combine(b, roots, settings), combine(a, signed, settings))

    return compose


def _padded(values: F32, rank: int, axis: int) -> F32:
    missing = rank - values.shape[axis]
    if missing == 0:
        return values
    return np.pad(values, [(0, missing if dimension == axis else 0) for dimension in (0, 1)])


def _whole(values: F32, part: Part, half: Half, settings: ComposeSettings) -> F32:
    del part, half, settings
    return values


def _trimmed(values: F32, part: Part, half: Half, settings: ComposeSettings) -> F32:
    del part, half
    return trim(values, settings.density)


def _dropped(values: F32, part: Part, half: Half, settings: ComposeSettings) -> F32:
    return drop_out(values, settings.key(part, half), 0, settings.density)


def _sum(values: Sequence[F32], weights: Sequence[float], settings: ComposeSettings) -> F32:
    del settings
    return weighted_sum(values, weights)


def _vote(values: Sequence[F32], weights: Sequence[float], settings: ComposeSettings) -> F32:
    return disjoint_mean(values, weights, settings.majority)


FACTORWISE: Final[dict[str, Compose]] = {
    "cat": cat,
    "linear": _factorwise(_whole, _sum),
    "ties": _factorwise(_trimmed, _vote),
    "dare_linear": _factorwise(_dropped, _sum),
    "dare_ties": _factorwise(_dropped, _vote),
    "magnitude_prune": _factorwise(_trimmed, _sum),
}
