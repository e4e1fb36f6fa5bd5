"""The leading singular triplets of a product of thin factors, from their Gram matrices.

With left = Q R and right^T = P S, the product is Q (R S^T) P^T, and R and S are Cholesky factors of left^T left and
right right^T (Cholesky-QR): the bases Q and P are never formed, only their leading combinations. That takes a tenth of
the time of two QR decompositions. Squaring loses half of the digits, so factors with nearly dependent columns are
decomposed by QR instead. All in float64. For the small core of stacked adapters see Panariello et al., "Accurate and
Efficient Low-Rank Model Merging in Core Space", arXiv 2509.17786.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from lora_kernels.linalg.factored import Triplets, product_svd
from lora_kernels.numeric.dtypes import F64

# Largest trace of the inverse of a correlation matrix: the error of the triplets is then 2^-53 times this, 1e-9, far
# below the rounding of the float32 factors made from them (6e-8).
MAX_INVERSE: Final = 1e7
# Singular values below this fraction of the largest are noise of the float32 input factors.
NOISE: Final = 2.0**-24


class Spectrum(NamedTuple):
    """leading: the requested triplets, without noise. energy: the squared norm of the whole product."""

    leading: Triplets
    energy: float


def leading_product(left: F64, right: F64, rank: int | None) -> Spectrum:
    """At most `rank` triplets of left (o, k) @ right (k, i); None for all that are not noise."""
    found = _by_gram(left, right, rank)
    if found is None:
        whole = product_svd(left, right)
        count = _count(whole.singular, rank)
        u, singular, v = whole
        found = Spectrum(Triplets(u[:, :count], singular[:count], v[:count]), float(np.dot(singular, singular)))
    return found


def _by_gram(left: F64, right: F64, rank: int | None) -> Spectrum | None:
    """As `leading_product`; None if columns of the factors are nearly dependent."""
    one, other = _cholesky(left.T @ left), _cholesky(right @ right.T)
    if one is None or other is None:
        return None
    u, singular, v = np.linalg.svd((one.lower.T * (one.norms * other.norms)) @ other.lower, full_matrices=False)
    count = _count(singular, rank)
    leading = Triplets(
        left @ (one.inverse.T @ u[:, :count] / one.norms[:, None]),
        singular[:count],
        (v[:count] @ other.inverse / other.norms) @ right,
    )
    return Spectrum(leading, float(np.dot(singular, singular)))


class _Cholesky(NamedTuple):
    """gram = diag(norms) lower lower^T diag(norms). inverse: of lower."""

    norms: F64
    lower: F64
    inverse: F64


def _cholesky(gram: F64) -> _Cholesky | None:
    norms = np.sqrt(gram.diagonal())
    if not (len(norms) and norms.min() > 0):
        return None
    try:
        lower = np.linalg.cholesky(gram / norms / norms[:, None]).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        return None
    inverse = np.linalg.inv(lower).astype(np.float64, copy=False)
    return _Cholesky(norms, lower, inverse) if np.vdot(inverse, inverse) <= MAX_INVERSE else None


def _count(singular: F64, rank: int | None) -> int:
    """How many of the descending singular values are requested and not noise."""
    if not len(singular) or singular[0] == 0:
        return 0
    real = int(np.count_nonzero(singular > NOISE * singular[0]))
    return real if rank is None else min(real, rank)
