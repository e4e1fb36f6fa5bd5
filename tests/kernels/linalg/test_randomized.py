"""Leading singular triplets of a streamed matrix, against numpy's decomposition in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_kernels.linalg import operators
from lora_kernels.linalg.randomized import leading_triplets, residual

F64 = NDArray[np.float64]
UNIT32 = 2.0**-24
SKETCH = 0  # exact_side: never by the Gram matrix, where the rank allows it
GRAM = 1 << 30


class Rows:
    """An array in blocks of rows. passes: how often it was read."""

    def __init__(self, values: F64, step: int = 50) -> None:
        self.values = values
        self.rows, self.columns = values.shape
        self.step = step
        self.passes = 0

    def blocks(self) -> Iterator[tuple[int, F64]]:
        self.passes += 1
        for row in range(0, self.rows, self.step):
            yield row, self.values[row : row + self.step].copy()


class Streamed(operators.Streamed):
    """The operator of an array."""

    def __init__(self, values: F64, step: int = 50) -> None:
        self.array = Rows(values, step)
        super().__init__(self.array)


def spectrum(kind: str, rows: int, columns: int, seed: int = 1) -> F64:
    random = np.random.default_rng(seed)
    if kind == "noise":
        return 1e-3 * random.standard_normal((rows, columns))
    if kind == "low rank and noise":
        low = random.standard_normal((rows, 8)) @ random.standard_normal((8, columns))
        return low + 1e-5 * random.standard_normal((rows, columns))
    side = min(rows, columns)
    left, _ = np.linalg.qr(random.standard_normal((rows, side)))
    right, _ = np.linalg.qr(random.standard_normal((columns, side)))
    singular = 0.9 ** np.arange(side) if kind == "geometric" else 1 / np.arange(1.0, side + 1)
    return (left * singular) @ right.T


def product(found: Any) -> F64:
    result: F64 = (found.left * found.singular) @ found.right
    return result


SHAPES = [(300, 200), (200, 300), (257, 129), (65, 64)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["noise", "low rank and noise", "geometric", "harmonic"])
@pytest.mark.parametrize("exact_side", [SKETCH, GRAM])
def test_error_is_that_of_the_best_approximation(shape: tuple[int, int], kind: str, exact_side: int) -> None:
    values = spectrum(kind, *shape)
    singular = np.linalg.svd(values, compute_uv=False)
    energy = float(np.sum(singular**2))
    for rank in (1, 4, 8):
        found = leading_triplets(Streamed(values), name="w", rank=rank, exact_side=exact_side)
        best = float(np.sqrt(np.sum(singular[rank:] ** 2)))
        error = float(np.linalg.norm(values - product(found)))
        # A converged search comes near the best error; noise has no leading space to converge to, and its error is
        # nearly the same whatever the space. Exactly decomposed, it is the best of the matrix as held: of D + E, E the
        # rounding to float32 of a wide one, whose leading space leaves at most the best error and twice ||E||.
        allowed = 2e-3 if kind == "noise" and not found.exact else UNIT32 if found.exact else 1e-5
        held = 2 * UNIT32 * energy**0.5 if found.exact and shape[0] < shape[1] else 0.0
        assert best * (1 - 1e-12) <= error <= best * (1 + allowed) + held + 1e-12, rank
        # What is stated is true of the result, converged or not.
        assert found.energy == pytest.approx(energy, rel=1e-13)
        assert (1 - found.kept) * energy == pytest.approx(error**2, abs=1e-13 * energy)
        measured = residual(Streamed(values), found.left * found.singular, found.right)
        assert measured == pytest.approx(error, rel=1e-13, abs=1e-13)
        np.testing.assert_allclose(found.left.T @ found.left, np.eye(rank), atol=1e-7)
        np.testing.assert_allclose(found.right @ found.right.T, np.eye(rank), atol=1e-7)
        assert (np.diff(found.singular) <= 0).all()


def test_the_sketch_is_used_where_the_matrix_is_large_for_the_rank() -> None:
    values = spectrum("geometric", 300, 200)
    matrix = Streamed(values)
    small = leading_triplets(matrix, name="w", rank=4, exact_side=SKETCH)
    assert not small.exact and small.passes == matrix.array.passes
    assert leading_triplets(Streamed(values), name="w", rank=100, exact_side=SKETCH).exact
    assert leading_triplets(Streamed(values), name="w", rank=4).exact


@pytest.mark.parametrize("exact_side", [SKETCH, GRAM])
@pytest.mark.parametrize(
    ("kind", "keep"),
    [("geometric", 0.3), ("geometric", 0.9), ("geometric", 0.99999), ("harmonic", 0.95), ("low rank and noise", 0.999)],
)
def test_energy_is_reached_by_the_fewest_triplets(kind: str, keep: float, exact_side: int) -> None:
    for shape in ((300, 200), (200, 300)):
        values = spectrum(kind, *shape)
        held = np.cumsum(np.linalg.svd(values, compute_uv=False) ** 2)
        needed = int(np.flatnonzero(held >= keep * held[-1])[0]) + 1
        found = leading_triplets(Streamed(values), name="w", keep_energy=keep, exact_side=exact_side)
        assert len(found.singular) == needed
        assert found.kept >= keep > leading_triplets(Streamed(values), name="w", rank=needed - 1).kept


def test_search_widens_until_the_energy_is_reached() -> None:
    values = 1e-3 * np.random.default_rng(3).standard_normal((700, 600))
    held = np.cumsum(np.linalg.svd(values, compute_uv=False) ** 2)
    needed = int(np.flatnonzero(held >= 0.4 * held[-1])[0]) + 1
    assert 64 < needed < 140
    found = leading_triplets(Streamed(values), name="w", keep_energy=0.4, exact_side=SKETCH)
    assert not found.exact and found.kept >= 0.4
    # Noise does not converge: a triplet or two more than the fewest, and never more than are needed of those found.
    assert needed <= len(found.singular) <= needed + 3
    assert np.sum(found.singular[:-1] ** 2) < 0.4 * found.energy
    most = leading_triplets(Streamed(values), name="w", keep_energy=0.9, exact_side=SKETCH)
    assert most.exact and most.kept >= 0.9


def test_max_rank_ends_the_search() -> None:
    values = spectrum("harmonic", 300, 200)
    for exact_side in (SKETCH, GRAM):
        found = leading_triplets(Streamed(values), name="w", keep_energy=0.99, max_rank=5, exact_side=exact_side)
        assert len(found.singular) == 5 and found.kept < 0.99
        few = leading_triplets(Streamed(values), name="w", keep_energy=0.5, max_rank=5, exact_side=exact_side)
        assert len(few.singular) == 1


@pytest.mark.parametrize("exact_side", [SKETCH, GRAM])
def test_zero_and_empty_matrices_have_no_triplets(exact_side: int) -> None:
    for shape in ((300, 200), (0, 5), (5, 0), (1, 1)):
        found = leading_triplets(Streamed(np.zeros(shape)), name="w", rank=4, exact_side=exact_side)
        assert found.left.shape == (shape[0], 0) and found.right.shape == (0, shape[1])
        assert found.energy == 0 and found.kept == 1


@pytest.mark.parametrize("exact_side", [SKETCH, GRAM])
def test_rank_above_the_matrix_s_own(exact_side: int) -> None:
    random = np.random.default_rng(5)
    values = random.standard_normal((400, 2)) @ random.standard_normal((2, 300))
    found = leading_triplets(Streamed(values), name="w", rank=6, exact_side=exact_side)
    assert found.kept == pytest.approx(1, abs=1e-14)
    assert np.linalg.norm(values - product(found)) <= 1e-7 * np.linalg.norm(values)
    tall = leading_triplets(Streamed(values[:, :3]), name="w", rank=6, exact_side=exact_side)
    assert tall.left.shape == (400, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("exact_side", [SKETCH, GRAM])
def test_values_that_are_not_finite_are_refused(bad: float, exact_side: int) -> None:
    values = spectrum("geometric", 300, 200)
    values[299, 7] = bad
    with pytest.raises(ValueError, match="NaN"):
        leading_triplets(Streamed(values), name="w", rank=4, exact_side=exact_side)


def test_blocks_of_any_size_give_the_same_but_for_rounding() -> None:
    values = spectrum("geometric", 300, 200)
    for exact_side in (SKETCH, GRAM):
        whole = product(leading_triplets(Streamed(values, 300), name="w", rank=6, exact_side=exact_side))
        for step in (1, 7, 299):
            pieces = leading_triplets(Streamed(values, step), name="w", rank=6, exact_side=exact_side)
            np.testing.assert_allclose(product(pieces), whole, atol=1e-12)


def test_name_and_seed_key_the_sketch_and_nothing_else_does() -> None:
    values = 1e-3 * np.random.default_rng(3).standard_normal((300, 200))

    def found(**options: Any) -> bytes:
        return product(leading_triplets(Streamed(values), rank=4, exact_side=SKETCH, **options)).tobytes()

    same = found(name="w", seed=1)
    assert found(name="w", seed=1) == same
    assert found(name="v", seed=1) != same and found(name="w", seed=2) != same


def test_same_bits_in_another_process() -> None:
    script = (
        "import hashlib, numpy as np; from tests.kernels.linalg.test_randomized import *\n"
        "found = leading_triplets(Streamed(spectrum('noise', 300, 200)), name='w', keep_energy=0.1, exact_side=SKETCH)\n"
        "print(found.exact, hashlib.sha256(product(found).tobytes()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "7")
    }
    assert len(outputs) == 1 and outputs.pop().startswith("False")
