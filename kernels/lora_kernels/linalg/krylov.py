"""The leading singular triplets of a matrix in memory, to float32's own accuracy whatever its spectrum.

Block Lanczos on the Gram matrix of the smaller side, with all directions kept and made orthogonal again (Golub and
Underwood, "The block Lanczos method for computing eigenvalues", 1977; Musco and Musco, "Randomized block Krylov
methods", NeurIPS 2015, arXiv 1504.05477). Trimmed and dropped-out updates have flat spectra, where a plain subspace
iteration is still far from the best subspace after as many passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from lora_kernels.linalg.randomized import EXACT_SIDE, LeadingTriplets, leading_triplets
from lora_kernels.numeric import philox
from lora_kernels.numeric.dtypes import F32, F64

OVERSAMPLING: Final = 10
# The Gram matrix of a matrix rounded to float32 is off by so much of its norm; the residuals of the wanted vectors end
# below it.
ACCURACY: Final = 2.0**-24
# Part of the smaller side above which the whole Gram matrix costs less than more directions.
WIDEST: Final = 0.375
_BLOCK: Final = 1 << 20


class Held:
    """A float32 matrix, or its transpose, as the rows that `leading_triplets` reads."""

    def __init__(self, values: F32) -> None:
        self._values = values
        self.rows, self.columns = values.shape

    def blocks(self) -> Iterator[tuple[int, F64]]:
        step = max(_BLOCK // max(self.columns, 1), 1)
        for row in range(0, self.rows, step):
            yield row, self._values[row : row + step].astype(np.float64)


def held_triplets(values: F32, rank: int, *, name: str) -> LeadingTriplets:
    """At most `rank` triplets of values (rows, columns). name: keys the random start. Raises ValueError if the
    values are not finite."""
    wide = values.shape[0] < values.shape[1]
    found = _tall(Held(values.T if wide else values), rank, name)
    if not wide:
        return found
    return LeadingTriplets(
        found.right.T, found.singular, found.left.T, found.energy, exact=found.exact, passes=found.passes
    )


def _tall(matrix: Held, rank: int, name: str) -> LeadingTriplets:
    side = matrix.columns
    if side <= EXACT_SIDE or rank + OVERSAMPLING > WIDEST * side:
        return leading_triplets(matrix, name=name, rank=rank, exact_side=side)
    energy = sum(_square(block) for _, block in matrix.blocks())
    if energy == 0:
        return leading_triplets(matrix, name=name, rank=rank, exact_side=side)
    vectors, passes = _krylov(matrix, rank, name)
    if vectors is None:
        return leading_triplets(matrix, name=name, rank=rank, exact_side=side)
    image = np.concatenate([block @ vectors for _, block in matrix.blocks()])
    left, singular, rotation = np.linalg.svd(image, full_matrices=False)
    return LeadingTriplets(left, singular, rotation @ vectors.T, energy, exact=False, passes=passes + 2)


def _krylov(matrix: Held, rank: int, name: str) -> tuple[F64 | None, int]:
    """Orthonormal vectors (columns, rank) that span the leading right subspace, and how often the matrix was read. None
    if they would take too many directions."""
    side, width = matrix.columns, rank + OVERSAMPLING
    most = int(WIDEST * side) // width
    start = philox.uniform(philox.stream_key(0, name), 0, side * width).astype(np.float64).reshape(side, width) - 0.5
    basis = np.empty((side, most * width))
    basis[:, :width] = np.linalg.qr(start)[0]
    gram = np.zeros((most * width, most * width))
    for step in range(most):
        old, known = slice(step * width, (step + 1) * width), (step + 1) * width
        spanned = basis[:, :known]
        image = np.zeros((side, width))
        for _, block in matrix.blocks():
            image += block.T @ (block @ basis[:, old])
        inside = spanned.T @ image
        gram[:known, old], gram[old, :known] = inside, inside.T
        image -= spanned @ inside
        image -= spanned @ (spanned.T @ image)
        following, outside = np.linalg.qr(image)
        values, rotation = np.linalg.eigh(gram[:known, :known])
        wanted = rotation[:, ::-1][:, :rank]
        # What the Gram matrix makes of a wanted vector beside the directions known so far.
        residuals = np.linalg.norm(outside @ wanted[old], axis=0)
        if known >= rank and residuals.max() <= ACCURACY * values[-1]:
            return spanned @ wanted, step + 1
        if step + 1 < most:
            basis[:, known : known + width] = following
    return None, most


def _square(block: F64) -> float:
    square = float(np.vdot(block, block))
    if not np.isfinite(square):
        raise ValueError("the matrix holds NaN, infinity or values whose squares are beyond float64")
    return square
