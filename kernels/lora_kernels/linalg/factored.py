"""The singular value decomposition of a product of thin factors, without the product.

QR of both factors leaves a core as small as the rank, whose decomposition gives that of the product. All in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


class Triplets(NamedTuple):
    """left @ diag(singular) @ right: left (o, k), singular (k,) falling, right (k, i)."""

    left: F64
    singular: F64
    right: F64


def product_svd(left: F64, right: F64) -> Triplets:
    """Of left (o, r) @ right (r, i); k = min(o, r, i)."""
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
    """||one[0] @ one[1] - other[0] @ other[1]||, to the last digits of the larger product and not to their root."""
    return product_norm(np.hstack([one[0], -other[0]]), np.vstack([one[1], other[1]]))


def balanced(triplets: Triplets, rank: int) -> tuple[F64, F64]:
    """B (o, rank) and A (rank, i) of the leading triplets, the root of each singular value on either side."""
    root = np.sqrt(triplets.singular[:rank])
    return triplets.left[:, :rank] * root, root[:, None] * triplets.right[:rank]


def rank_for_energy(singular: F64, keep: float) -> int:
    """The fewest leading singular values that hold the part `keep` of the sum of squares; 0 if that sum is 0."""
    held = np.cumsum(singular**2)
    if held.size == 0 or held[-1] == 0:
        return 0
    return min(int(np.searchsorted(held, keep * held[-1])) + 1, len(singular))
