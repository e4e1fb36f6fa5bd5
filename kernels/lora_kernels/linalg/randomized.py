"""The leading singular triplets of a matrix that is read in blocks of rows and never held.

Randomized subspace iteration (Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53, 2011,
algorithms 4.4 and 5.1) on the row space: V = orth(D^T D V), a pass over the blocks each, then D V and the singular
value decomposition of that thin matrix. Where the smaller side is small, or the rank is a large part of it, the Gram
matrix of that side is decomposed instead, which is exact. All sums are float64.

The stated error is exact, not an estimate: D P for an orthogonal projector P has the squared error
||D||^2 - ||D P||^2 whatever P is, and both norms are summed over the blocks.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from lora_kernels.numeric import philox

F64 = npt.NDArray[np.float64]

# Columns of the sketch beyond the rank: Halko et al. find 5 to 10 enough, and more of them spares passes.
OVERSAMPLING: Final = 10
# First width of the sketch where the rank is not known beforehand; it doubles until the energy is reached.
FIRST_WIDTH: Final = 32
# Up to this smaller side, the Gram matrix costs no more than the passes of a sketch (measured: 2 * 512^2 * o operations
# and the eigenvalues of a 512 x 512 matrix, 0.06 s on one core).
EXACT_SIDE: Final = 512
# A sketch wider than this part of the smaller side costs more than the exact way.
WIDEST_SKETCH: Final = 0.25
# The iteration ends if a pass takes less than this part off the squared error (or the sum's last digits), or after
# so many passes; a search for the width stops much earlier.
ERROR_GAIN: Final = 1e-6
LAST_DIGITS: Final = 1e-14
MAX_PASSES: Final = 10
SEARCH_PASSES: Final = 2


# A large Gram matrix and its eigenvectors are most of what a process holds: one at a time, whatever the threads.
_LARGE: Final = threading.Lock()


class RowStream(Protocol):
    """A matrix D (rows, columns), read as often as asked."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    def blocks(self) -> Iterator[tuple[int, F64]]:
        """(first row, block of whole rows) in order; the same blocks each time, a block valid until the next."""


@dataclass(frozen=True)
class LeadingTriplets:
    """left @ diag(singular) @ right, the leading part of D: left (rows, k), singular (k,) falling, right (k, columns).

    energy: ||D||^2. exact: by the Gram matrix. passes: readings of the matrix.
    """

    left: F64
    singular: F64
    right: F64
    energy: float
    exact: bool
    passes: int

    @property
    def kept(self) -> float:
        """The part of ||D||^2 that the triplets hold; 1 of a zero matrix."""
        return kept_energy(self.singular, self.energy)


def leading_triplets(
    matrix: RowStream,
    *,
    name: str,
    rank: int | None = None,
    keep_energy: float | None = None,
    max_rank: int | None = None,
    seed: int = 0,
    exact_side: int = EXACT_SIDE,
) -> LeadingTriplets:
    """The leading `rank` triplets, or as few as hold `keep_energy` (0 to 1) of ||D||^2, at most `max_rank`.

    One of rank and keep_energy is given. name: keys the sketch, with `seed`, so that a matrix gets the same one
    whatever else is decomposed. exact_side: see EXACT_SIDE. Fewer triplets come back if the matrix has fewer rows or
    columns, and none of a zero matrix. Where the iteration ends before the subspace is the best one, which happens with
    spectra that hardly fall, a little less is kept than could be, or a few triplets more are needed; `kept` says the
    truth. Raises ValueError if the matrix is not finite.
    """
    if (rank is None) == (keep_energy is None):
        raise ValueError("one of rank and keep_energy")
    side = min(matrix.rows, matrix.columns)
    most = min(side, side if max_rank is None else max_rank) if rank is None else min(side, rank)
    if most == 0:
        return _none(matrix, _energy(matrix), 1)
    widest = 0 if side <= exact_side else int(WIDEST_SKETCH * side)
    found = most if keep_energy is None else min(most, FIRST_WIDTH)
    sketch = _Sketch(matrix, philox.stream_key(seed, name))
    while found + OVERSAMPLING <= widest:
        sketch.widen(found + OVERSAMPLING)
        energies = sketch.iterate(found, SEARCH_PASSES if found < most else MAX_PASSES)
        if sketch.energy == 0:
            return _none(matrix, sketch.energy, sketch.passes)
        wanted = _wanted(energies[:found], sketch.energy, most, keep_energy)
        if wanted is None:
            assert keep_energy is not None
            found = min(most, _more(energies[:found], keep_energy * sketch.energy))
            continue
        if found < most:
            sketch.iterate(wanted, MAX_PASSES)
        left, singular, right = _project(matrix, sketch.basis)
        wanted = _wanted(singular[:found] ** 2, sketch.energy, most, keep_energy) or wanted
        return LeadingTriplets(
            left[:, :wanted], singular[:wanted], right[:wanted], sketch.energy, False, sketch.passes + 1
        )
    with _LARGE if side > exact_side else nullcontext():
        return _by_gram(matrix, most, keep_energy, sketch.passes)


def kept_energy(singular: F64, energy: float) -> float:
    """The part of `energy` in these singular values; 1 if there is none."""
    return min(float(np.dot(singular, singular)) / energy, 1.0) if energy > 0 else 1.0


def residual(matrix: RowStream, left: npt.NDArray[np.floating], right: npt.NDArray[np.floating]) -> float:
    """||D - left @ right||, by looking at every element once more: true of factors that were rounded to be stored."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    parts = []
    for row, block in matrix.blocks():
        rest = block - left[row : row + len(block)] @ right
        parts.append(float(np.vdot(rest, rest)))
    return math.sqrt(math.fsum(parts))


def _wanted(energies: F64, energy: float, most: int, keep_energy: float | None) -> int | None:
    """How many of the triplets with these squares of singular values are enough; None if there must be more."""
    if keep_energy is None:
        return min(most, len(energies))
    reached = np.flatnonzero(np.cumsum(energies) >= keep_energy * energy)
    if reached.size:
        return min(int(reached[0]) + 1, most)
    return most if len(energies) >= most else None


def _more(energies: F64, target: float) -> int:
    """Where to look next for the rank that holds `target`: the triplets to come hold no more than the last one each."""
    last = max(float(energies[-1]), np.finfo(np.float64).tiny)
    missing = (target - float(energies.sum())) / last
    return max(2 * len(energies), len(energies) + math.ceil(min(missing, 1 << 40)))


class _Sketch:
    """An orthonormal basis (columns, width) that turns to the leading row space; ||D||^2; passes so far."""

    def __init__(self, matrix: RowStream, key: int) -> None:
        self._matrix = matrix
        self._key = key
        self.basis: F64 = np.empty((matrix.columns, 0))
        self.energy = 0.0
        self.passes = 0

    def widen(self, width: int) -> None:
        """Random columns beside those that are there; column j is the same whatever the widths before."""
        columns, old = self.basis.shape
        fresh = philox.uniform(self._key, old * columns, (width - old) * columns).astype(np.float64) - 0.5
        self.basis, _ = np.linalg.qr(np.hstack([self.basis, fresh.reshape(width - old, columns).T]))

    def iterate(self, rank: int, most_passes: int) -> F64:
        """Turn the basis until the first `rank` directions hardly gain; the energies that its directions held before
        the last pass, falling."""
        before = 0.0
        for _ in range(most_passes):
            image = np.zeros_like(self.basis)
            parts = []
            for _, block in self._matrix.blocks():
                parts.append(_square(block))
                image += block.T @ (block @ self.basis)
            self.energy = math.fsum(parts)
            self.passes += 1
            # The eigenvalues of V^T D^T D V are the energies that the directions of V hold: free to look at each pass.
            energies: F64 = np.maximum(np.linalg.eigvalsh(self.basis.T @ image)[::-1], 0)
            held = float(energies[:rank].sum())
            self.basis, _ = np.linalg.qr(image)
            if held - before <= max(ERROR_GAIN * (self.energy - held), LAST_DIGITS * self.energy):
                break
            before = held
        return energies


def _project(matrix: RowStream, basis: F64) -> tuple[F64, F64, F64]:
    """The singular value decomposition of D V V^T."""
    image = np.empty((matrix.rows, basis.shape[1]))
    for row, block in matrix.blocks():
        np.matmul(block, basis, out=image[row : row + len(block)])
    left, singular, rotation = np.linalg.svd(image, full_matrices=False)
    return left, singular, rotation @ basis.T


def _by_gram(matrix: RowStream, most: int, keep_energy: float | None, passes: int) -> LeadingTriplets:
    """Exact: the eigenvectors of the smaller Gram matrix, then the other side by one more pass.

    Squaring costs what lies below 1e-8 of the largest singular value, which float32 factors could not hold either. The
    matrix is held, as float32, where it has fewer rows than columns: D D^T needs all pairs of its rows.
    """
    wide = matrix.rows < matrix.columns
    gram = np.zeros((min(matrix.rows, matrix.columns),) * 2)
    parts, held = [], []
    for _, block in matrix.blocks():
        parts.append(_square(block))
        if wide:
            held.append(block.astype(np.float32))
        else:
            gram += block.T @ block
    energy = math.fsum(parts)
    if energy == 0:
        return _none(matrix, energy, passes + 1)
    if wide:
        step = max(1, (1 << 20) // matrix.rows)
        for column in range(0, matrix.columns, step):
            piece = np.concatenate([block[:, column : column + step] for block in held]).astype(np.float64)
            gram += piece @ piece.T
        held.clear()
    values, vectors = np.linalg.eigh(gram)
    del gram
    count = _wanted(np.maximum(values[::-1], 0), energy, most, keep_energy) or most
    vectors = np.ascontiguousarray(vectors[:, ::-1][:, :count])
    if wide:
        image = np.zeros((count, matrix.columns))
        for row, block in matrix.blocks():
            image += vectors[row : row + len(block)].T @ block
        rotation, singular, right = np.linalg.svd(image, full_matrices=False)
        left = vectors @ rotation
    else:
        left, singular, right = _project(matrix, vectors)
    return LeadingTriplets(left, singular, right, energy, True, passes + 2)


def _energy(matrix: RowStream) -> float:
    return math.fsum(_square(block) for _, block in matrix.blocks())


def _square(block: F64) -> float:
    """The sum of squares. Raises ValueError if it is not finite."""
    square = float(np.vdot(block, block))
    if not math.isfinite(square):
        raise ValueError("the matrix holds NaN, infinity or values whose squares are beyond float64")
    return square


def _none(matrix: RowStream, energy: float, passes: int) -> LeadingTriplets:
    nothing = np.empty((matrix.rows, 0)), np.empty(0), np.empty((0, matrix.columns))
    return LeadingTriplets(*nothing, energy, True, passes)
