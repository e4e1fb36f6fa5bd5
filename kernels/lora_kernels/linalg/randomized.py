"""The leading singular triplets of a matrix that is read in blocks of rows and never in memory as a whole.

Randomized subspace iteration (Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53, 2011,
algorithms 4.4 and 5.1) on the row space: V = orth(D^T D V), one pass over the blocks per step, then the SVD of the thin
matrix D V. If the smaller side is small, or the rank is a large fraction of it, the Gram matrix of that side is
decomposed instead, which is exact. All sums are float64.

The reported error is exact, not an estimate: D P has the squared error ||D||^2 - ||D P||^2 for any orthogonal projector
P, and both norms are summed over the blocks.
"""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from lora_kernels.linalg.operators import F64, Operator
from lora_kernels.numeric import philox

# Columns of the sketch beyond the rank: Halko et al. find 5 to 10 enough; more of them save passes.
OVERSAMPLING: Final = 10
# First width of the sketch if the rank is not known in advance; it doubles until the energy is reached.
FIRST_WIDTH: Final = 32
# Up to this smaller side, the Gram matrix costs no more than the passes of a sketch (measured: 2 * 512^2 * o operations
# and the eigenvalues of a 512 x 512 matrix, 0.06 s on one core).
EXACT_SIDE: Final = 512
# A sketch wider than this fraction of the smaller side costs more than the exact method.
WIDEST_SKETCH: Final = 0.25
# The iteration ends if a pass reduces the squared error by less than this fraction (or only by rounding), or after
# MAX_PASSES; a search for the width stops much earlier.
ERROR_GAIN: Final = 1e-6
LAST_DIGITS: Final = 1e-14
MAX_PASSES: Final = 10
SEARCH_PASSES: Final = 2


# A large Gram matrix and its eigenvectors dominate the memory of a process: only one at a time, across all threads.
_LARGE_GRAM: Final = threading.Lock()


@dataclass(frozen=True)
class LeadingTriplets:
    """The leading part of D, left @ diag(singular) @ right: left (rows, k), singular (k,), right (k, columns).

    singular: descending. energy: ||D||^2. exact: from the Gram matrix. passes: number of passes over the matrix.
    """

    left: F64
    singular: F64
    right: F64
    energy: float
    exact: bool
    passes: int

    @property
    def kept(self) -> float:
        """The fraction of ||D||^2 in the triplets; 1 for a zero matrix."""
        return kept_energy(self.singular, self.energy)


def leading_triplets(
    matrix: Operator,
    *,
    name: str,
    rank: int | None = None,
    keep_energy: float | None = None,
    max_rank: int | None = None,
    seed: int = 0,
    exact_side: int = EXACT_SIDE,
) -> LeadingTriplets:
    """The leading `rank` triplets, or the fewest with the fraction `keep_energy` (0 to 1) of ||D||^2, at most
    `max_rank`, which goes with keep_energy alone. Exactly one of rank and keep_energy must be given.

    name, seed: key of the sketch, so that it does not depend on what else is decomposed. exact_side: see EXACT_SIDE.
    Returns fewer triplets if the matrix has fewer rows or columns, none for a zero matrix. With nearly flat spectra the
    iteration may end before the subspace is optimal: then slightly less is kept than possible, or a few more triplets
    are returned; `kept` is exact. Raises ValueError if the matrix is not finite.
    """
    if (rank is None) == (keep_energy is None):
        raise ValueError("expected exactly one of rank and keep_energy")
    side = min(matrix.rows, matrix.columns)
    limit = min(side, side if max_rank is None else max_rank) if rank is None else min(side, rank)
    if limit == 0:
        return _no_triplets(matrix, matrix.energy(), 1)
    widest = 0 if side <= exact_side else int(WIDEST_SKETCH * side)
    found = limit if keep_energy is None else min(limit, FIRST_WIDTH)
    sketch = _Sketch(matrix, philox.stream_key(seed, name))
    while found + OVERSAMPLING <= widest:
        sketch.widen(found + OVERSAMPLING)
        energies = sketch.iterate(found, SEARCH_PASSES if found < limit else MAX_PASSES)
        if sketch.energy == 0:
            return _no_triplets(matrix, sketch.energy, sketch.passes)
        wanted = _sufficient(energies[:found], sketch.energy, limit, keep_energy)
        if wanted is None:
            assert keep_energy is not None
            found = min(limit, _next_rank(energies[:found], keep_energy * sketch.energy))
            continue
        if found < limit:
            sketch.iterate(wanted, MAX_PASSES)
        left, singular, right = _project(matrix, sketch.basis)
        wanted = _sufficient(singular[:found] ** 2, sketch.energy, limit, keep_energy) or wanted
        return LeadingTriplets(
            left[:, :wanted], singular[:wanted], right[:wanted], sketch.energy, False, sketch.passes + 1
        )
    with _LARGE_GRAM if side > exact_side else nullcontext():
        return _by_gram(matrix, limit, keep_energy, sketch.passes)


def kept_energy(singular: F64, energy: float) -> float:
    """The fraction of `energy` in these singular values; 1 if the energy is 0."""
    return min(float(np.dot(singular, singular)) / energy, 1.0) if energy > 0 else 1.0


def residual(matrix: Operator, left: npt.NDArray[np.floating], right: npt.NDArray[np.floating]) -> float:
    """||D - left @ right||, by another pass over the matrix: exact even if the factors were rounded for storage."""
    return matrix.residual(left.astype(np.float64), right.astype(np.float64))


def _sufficient(energies: F64, energy: float, limit: int, keep_energy: float | None) -> int | None:
    """How many triplets with these squared singular values suffice; None if more are needed."""
    if keep_energy is None:
        return min(limit, len(energies))
    reached = np.flatnonzero(np.cumsum(energies) >= keep_energy * energy)
    if reached.size:
        return min(int(reached[0]) + 1, limit)
    return limit if len(energies) >= limit else None


def _next_rank(energies: F64, target: float) -> int:
    """The next rank to try for the energy `target`: each further triplet has at most the energy of the last one."""
    last = max(float(energies[-1]), np.finfo(np.float64).tiny)
    missing = (target - float(energies.sum())) / last
    return max(2 * len(energies), len(energies) + math.ceil(min(missing, 1 << 40)))


class _Sketch:
    """An orthonormal basis (columns, width) that converges to the leading row space; ||D||^2; passes so far."""

    def __init__(self, matrix: Operator, key: int) -> None:
        self._matrix = matrix
        self._key = key
        self.basis: F64 = np.empty((matrix.columns, 0))
        self.energy = 0.0
        self.passes = 0

    def widen(self, width: int) -> None:
        """Append random columns; column j does not depend on earlier widths."""
        columns, old = self.basis.shape
        fresh = philox.uniform(self._key, old * columns, (width - old) * columns).astype(np.float64) - 0.5
        self.basis, _ = np.linalg.qr(np.hstack([self.basis, fresh.reshape(width - old, columns).T]))

    def iterate(self, rank: int, max_passes: int) -> F64:
        """Iterate until the first `rank` directions gain too little. Returns the energies of the directions before the
        last pass, descending."""
        before = 0.0
        for _ in range(max_passes):
            self.energy, image = self._matrix.gram(self.basis)
            self.passes += 1
            # The eigenvalues of V^T D^T D V are the energies of the directions of V, available in each pass for free.
            energies: F64 = np.maximum(np.linalg.eigvalsh(self.basis.T @ image)[::-1], 0)
            captured = float(energies[:rank].sum())
            self.basis, _ = np.linalg.qr(image)
            if captured - before <= max(ERROR_GAIN * (self.energy - captured), LAST_DIGITS * self.energy):
                break
            before = captured
        return energies


def _project(matrix: Operator, basis: F64) -> tuple[F64, F64, F64]:
    """The SVD of D V V^T."""
    left, singular, rotation = np.linalg.svd(matrix.times(basis), full_matrices=False)
    return left, singular, rotation @ basis.T


def _by_gram(matrix: Operator, limit: int, keep_energy: float | None, passes: int) -> LeadingTriplets:
    """Exact: the eigenvectors of the smaller Gram matrix, then the other side by one more pass.

    Squaring loses singular values below 1e-8 of the largest, which float32 factors could not represent either.
    """
    energy, values, vectors = matrix.spectrum()
    if energy == 0:
        return _no_triplets(matrix, energy, passes + 1)
    count = _sufficient(np.maximum(values[::-1], 0), energy, limit, keep_energy) or limit
    vectors = np.ascontiguousarray(vectors[:, ::-1][:, :count])
    if matrix.rows < matrix.columns:
        rotation, singular, right = np.linalg.svd(matrix.projected(vectors), full_matrices=False)
        left = vectors @ rotation
    else:
        left, singular, right = _project(matrix, vectors)
    return LeadingTriplets(left, singular, right, energy, True, passes + 2)


def _no_triplets(matrix: Operator, energy: float, passes: int) -> LeadingTriplets:
    nothing = np.empty((matrix.rows, 0)), np.empty(0), np.empty((0, matrix.columns))
    return LeadingTriplets(*nothing, energy, True, passes)
