"""The SVD of a product of thin factors, without forming the product.

QR of both factors leaves a core of the size of the rank, whose SVD gives that of the product. All in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


class Triplets(NamedTuple):
    """left @ diag(singular) @ right: left (o, k), singular (k,) descending, right (k, i)."""

    left: F64
    singular: F64
    right: F64


def product_svd(left: F64, right: F64) -> Triplets:
    """The SVD of left (o, r) @ right (r, i); k = min(o, r, i)."""
    left_basis, left_core = np.linalg.qr(left)
    right_basis, right_core = np.linalg.qr(right.T)
    u, singular, v = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return Triplets(left_basis @ u, singular, v @ right_basis.T)


def product_norm(left: F64, right: F64) -> float:
    """The Frobenius norm of left @ right."""
    _, left_core = np.linalg.qr(left)
    _, right_core = np.linalg.qr(right.T)
    return float(np.linalg.norm(left_core @ right_core.T))


def distance(one: tuple[F64, F64], other: tuple[F64, F64]) -> float:
    """||one[0] @ one[1] - other[0] @ other[1]||, accurate to eps times the larger norm, not to sqrt(eps) times."""
    return product_norm(np.hstack([one[0], -other[0]]), np.vstack([one[1], other[1]]))


def balanced(triplets: Triplets, rank: int) -> tuple[F64, F64]:
    """B (o, rank) and A (rank, i) of the leading triplets, each with the square roots of the singular values."""
    root = np.sqrt(triplets.singular[:rank])
    return triplets.left[:, :rank] * root, root[:, None] * triplets.right[:rank]


def rank_for_energy(singular: F64, keep: float) -> int:
    """The number of leading singular values that reach the fraction `keep` of the sum of squares; 0 if the sum is 0."""
    cumulative = np.cumsum(singular**2)
    if cumulative.size == 0 or cumulative[-1] == 0:
        return 0
    return min(int(np.searchsorted(cumulative, keep * cumulative[-1])) + 1, len(singular))
