"""Comparison of one module of two adapters from the factors, in float64. The products are never formed."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from lora_kernels.adapters import LowRankModule
from lora_kernels.linalg.factored import distance, product_norm, product_svd

F64 = npt.NDArray[np.float64]


class ModuleDiff(msgspec.Struct, frozen=True, kw_only=True):
    """Difference between the updates of a module.

    Args:
        state: `same` if the factors are equal, `changed`, or `added` or `removed` if one adapter lacks the module.
        before, after, difference: Frobenius norms of both updates and of their difference.
        cosine: of the updates as vectors; None if one is zero.
        inputs, outputs: overlap of the row spaces and of the column spaces, 0 to 1; None if an update is zero.
    """

    module: str
    state: Literal["same", "changed", "added", "removed"]
    rank_before: int
    rank_after: int
    before: float
    after: float
    difference: float
    cosine: float | None = None
    inputs: float | None = None
    outputs: float | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of two adapters. Norms are of all modules as one vector; modules are sorted by descending
    difference."""

    before: float
    after: float
    difference: float
    cosine: float | None
    modules: tuple[ModuleDiff, ...]


def compare_modules(before: LowRankModule | None, after: LowRankModule | None) -> ModuleDiff:
    """Compare a module of two adapters; None if an adapter lacks it. The shapes must fit. Raises ValueError if both are
    None."""
    known = before or after
    if known is None:
        raise ValueError("no module to compare")
    if before is None or after is None:
        norm = product_norm(*_factors(known))
        return ModuleDiff(
            module=known.module,
            state="added" if before is None else "removed",
            rank_before=before.rank if before else 0,
            rank_after=after.rank if after else 0,
            before=norm if before else 0.0,
            after=norm if after else 0.0,
            difference=norm,
        )
    one, other = _factors(before), _factors(after)
    norms = product_norm(*one), product_norm(*other)
    same = before.scale == after.scale and np.array_equal(before.a, after.a) and np.array_equal(before.b, after.b)
    overlap = _overlaps(one, other) if all(norms) else (None, None)
    return ModuleDiff(
        module=known.module,
        state="same" if same else "changed",
        rank_before=before.rank,
        rank_after=after.rank,
        before=norms[0],
        after=norms[1],
        difference=0.0 if same else distance(one, other),
        cosine=_cosine(_inner(one, other), *norms),
        inputs=overlap[0],
        outputs=overlap[1],
    )


def summed(modules: list[ModuleDiff]) -> Comparison:
    """Compare all modules as one vector: <a, b> of a module is (|a|^2 + |b|^2 - |a - b|^2) / 2."""
    before, after, difference = (
        math.fsum(getattr(module, name) ** 2 for module in modules) for name in ("before", "after", "difference")
    )
    return Comparison(
        before=math.sqrt(before),
        after=math.sqrt(after),
        difference=math.sqrt(difference),
        cosine=_cosine((before + after - difference) / 2, math.sqrt(before), math.sqrt(after)),
        modules=tuple(sorted(modules, key=lambda module: (-module.difference, module.module))),
    )


def _factors(module: LowRankModule) -> tuple[F64, F64]:
    return module.scale * module.b.astype(np.float64), module.a.astype(np.float64)


def _inner(one: tuple[F64, F64], other: tuple[F64, F64]) -> float:
    """<B1 A1, B2 A2> = sum of (B1' B2) * (A1 A2')."""
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())


def _cosine(inner: float, *norms: float) -> float | None:
    return min(max(inner / (norms[0] * norms[1]), -1.0), 1.0) if all(norms) else None


def _overlaps(one: tuple[F64, F64], other: tuple[F64, F64]) -> tuple[float, float]:
    """||U' V||_F^2 / min(i, j) of orthonormal bases of the row spaces and of the column spaces: 1 if one holds the
    other, 0 if they are orthogonal (Hu et al. 2021, arXiv:2106.09685, section 7.2)."""
    bases = []
    for left, right in (one, other):
        found = product_svd(left, right)
        # Smaller singular values are rounding errors of the float32 factors.
        kept = found.singular > found.singular[0] * np.finfo(np.float32).eps
        bases.append((found.right[kept].T, found.left[:, kept]))
    values = []
    for u, v in zip(*bases, strict=True):
        values.append(min(float(np.linalg.norm(u.T @ v) ** 2) / min(u.shape[1], v.shape[1]), 1.0))
    return values[0], values[1]
