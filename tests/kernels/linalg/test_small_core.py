"""Leading triplets of products of thin factors, from their Gram matrices and, where those are no good, by QR."""

from __future__ import annotations

import numpy as np
import pytest

from lora_kernels.linalg import small_core
from lora_kernels.linalg.small_core import leading_product
from tests.kernels.checkpoints import matrix


def error(left: np.ndarray, right: np.ndarray, rank: int | None = None) -> float:
    """||found - best|| / ||best||, best by a full decomposition of the product."""
    u, s, v = np.linalg.svd(left @ right, full_matrices=False)
    count = len(s) if rank is None else rank
    found, energy = leading_product(left, right, rank)
    assert energy == pytest.approx(float(np.dot(s, s)), rel=1e-12)
    best = (u[:, :count] * s[:count]) @ v[:count]
    return float(np.linalg.norm((found.left * found.singular) @ found.right - best) / np.linalg.norm(best))


def dependent(size: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns of B in pairs that differ by `size` of themselves, as adapters trained from one start have."""
    one, other = matrix(60, 4, seed=1), matrix(60, 4, seed=2)
    return np.hstack([one, one + size * other]), matrix(8, 50, seed=3)


@pytest.mark.parametrize("rank", [None, 3, 8])
def test_independent_factors(rank: int | None) -> None:
    assert error(matrix(60, 8, seed=1), matrix(8, 50, seed=2), rank) <= 1e-12


def skew(left: np.ndarray, right: np.ndarray) -> float:
    """How far the singular vectors are from orthonormal."""
    found, _ = leading_product(left, right, None)
    unit = np.eye(len(found.singular))
    return max(float(np.abs(half - unit).max()) for half in (found.left.T @ found.left, found.right @ found.right.T))


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_nearly_dependent_factors_lose_nothing(size: float) -> None:
    assert error(*dependent(size)) <= 1e-12
    assert skew(*dependent(size)) <= 2.0**-53 * small_core.MAX_INVERSE


def test_gram_matrices_alone_would_lose_them(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 2.0**-53 * small_core.MAX_INVERSE
    monkeypatch.setattr(small_core, "MAX_INVERSE", np.inf)
    assert skew(*dependent(1e-6)) > 100 * bound


def test_factors_of_very_different_sizes_count_alike() -> None:
    sizes = 10.0 ** np.arange(-12, 12, 3)
    left, right = matrix(60, 8, seed=1) * sizes, matrix(8, 50, seed=2) / sizes[:, None]
    assert error(left, right) <= 1e-11


@pytest.mark.parametrize("rows", [60, 5])
def test_zeros_and_copies_add_no_rank(rows: int) -> None:
    left, right = matrix(rows, 3, seed=1), matrix(3, 50, seed=2)
    twice = np.hstack([left, np.zeros((rows, 2)), left]), np.vstack([right, matrix(2, 50, seed=3), right])
    found, energy = leading_product(*twice, None)
    assert len(found.singular) == 3
    assert energy == pytest.approx(4 * np.linalg.norm(left @ right) ** 2, rel=1e-12)
    np.testing.assert_allclose((found.left * found.singular) @ found.right, 2 * left @ right, rtol=0, atol=1e-14)
    nothing, energy = leading_product(0 * left, right, 2)
    assert nothing.left.shape == (rows, 0) and energy == 0
