"""The leading singular triplets of a matrix in memory, to float32 accuracy for any spectrum.

Block Lanczos on the Gram matrix of the smaller side, with full reorthogonalization (Golub and Underwood, "The block
Lanczos method for computing eigenvalues", 1977; Musco and Musco, "Randomized block Krylov methods", NeurIPS 2015, arXiv
1504.05477). Trimmed (TIES) and dropped (DARE) updates have flat spectra, for which subspace iteration is still far from
the best subspace after as many passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from lora_kernels.linalg.operators import F64, MakeOperator, Operator, Streamed
from lora_kernels.linalg.randomized import EXACT_SIDE, LeadingTriplets, leading_triplets
from lora_kernels.numeric import philox
from lora_kernels.numeric.dtypes import F32

OVERSAMPLING: Final = 10
# Relative error of the Gram matrix of a matrix rounded to float32; the residuals of the wanted vectors end below it.
ACCURACY: Final = 2.0**-24
# Fraction of the smaller side above which the whole Gram matrix costs less than more directions.
WIDEST: Final = 0.375
_BLOCK: Final = 1 << 20


class DenseRows:
    """A float32 matrix, or its transpose, as a `RowStream`."""

    def __init__(self, values: F32) -> None:
        self._values = values
        self.rows, self.columns = values.shape

    def blocks(self) -> Iterator[tuple[int, F64]]:
        step = max(_BLOCK // max(self.columns, 1), 1)
        for row in range(0, self.rows, step):
            yield row, self._values[row : row + step].astype(np.float64)


def host_rows(values: F32) -> Streamed:
    """The operator of a matrix in memory."""
    return Streamed(DenseRows(values))


def dense_triplets(values: F32, rank: int, *, name: str, operator: MakeOperator = host_rows) -> LeadingTriplets:
    """At most `rank` triplets of values (rows, columns).

    Args:
        name: key of the random start.
        operator: of `values` or its transpose; another array that it takes, such as a tensor on a device, may be
            `values`.

    Raises ValueError if a value is not finite.
    """
    wide = values.shape[0] < values.shape[1]
    found = _tall_triplets(operator(values.T if wide else values), rank, name)
    if not wide:
        return found
    return LeadingTriplets(
        found.right.T, found.singular, found.left.T, found.energy, exact=found.exact, passes=found.passes
    )


def _tall_triplets(matrix: Operator, rank: int, name: str) -> LeadingTriplets:
    side = matrix.columns
    if side <= EXACT_SIDE or rank + OVERSAMPLING > WIDEST * side:
        return leading_triplets(matrix, name=name, rank=rank, exact_side=side)
    energy = matrix.energy()
    if energy == 0:
        return leading_triplets(matrix, name=name, rank=rank, exact_side=side)
    vectors, passes = _krylov(matrix, rank, name)
    if vectors is None:
        return leading_triplets(matrix, name=name, rank=rank, exact_side=side)
    left, singular, rotation = np.linalg.svd(matrix.times(vectors), full_matrices=False)
    return LeadingTriplets(left, singular, rotation @ vectors.T, energy, exact=False, passes=passes + 2)


def _krylov(matrix: Operator, rank: int, name: str) -> tuple[F64 | None, int]:
    """Orthonormal vectors (columns, rank) that span the leading right subspace, or None if they would need too many
    directions; and the number of passes over the matrix."""
    side, width = matrix.columns, rank + OVERSAMPLING
    max_steps = int(WIDEST * side) // width
    start = philox.uniform(philox.stream_key(0, name), 0, side * width).astype(np.float64).reshape(side, width) - 0.5
    basis = np.empty((side, max_steps * width))
    basis[:, :width] = np.linalg.qr(start)[0]
    gram = np.zeros((max_steps * width, max_steps * width))
    for step in range(max_steps):
        old, known = slice(step * width, (step + 1) * width), (step + 1) * width
        spanned = basis[:, :known]
        _, image = matrix.gram(basis[:, old])
        inside = spanned.T @ image
        gram[:known, old], gram[old, :known] = inside, inside.T
        image -= spanned @ inside
        image -= spanned @ (spanned.T @ image)
        following, outside = np.linalg.qr(image)
        values, rotation = np.linalg.eigh(gram[:known, :known])
        wanted = rotation[:, ::-1][:, :rank]
        # The part of the Gram matrix times a wanted vector that is orthogonal to the known directions.
        residuals = np.linalg.norm(outside @ wanted[old], axis=0)
        if known >= rank and residuals.max() <= ACCURACY * values[-1]:
            return spanned @ wanted, step + 1
        if step + 1 < max_steps:
            basis[:, known : known + width] = following
    return None, max_steps
