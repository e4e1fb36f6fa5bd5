"""Leading triplets of matrices in memory, against a full decomposition in float64."""

from __future__ import annotations

import numpy as np
import pytest

from lora_kernels.linalg import krylov
from lora_kernels.linalg.krylov import dense_triplets


def flat(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Six directions that stand a little out of noise, as a trimmed update has them."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((rows, columns))
    signal = random.standard_normal((rows, 6)) @ random.standard_normal((6, columns))
    return (noise + 0.15 * signal).astype(np.float32)


@pytest.mark.parametrize("shape", [(900, 600), (600, 900), (40, 30), (700, 1)])
def test_as_good_as_the_full_decomposition(shape: tuple[int, int]) -> None:
    values = flat(*shape)
    found = dense_triplets(values, 6, name="w")
    s = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    assert found.exact == (min(shape) <= 512), found.passes
    count = min(6, *shape)
    # A residual of the Gram matrix of 2^-24 of its norm moves singular values by half as much.
    np.testing.assert_allclose(found.singular, s[:count], rtol=0, atol=krylov.ACCURACY * s[0])
    assert found.energy == pytest.approx(np.dot(s, s), rel=1e-12)
    best = np.linalg.norm(s[count:]) ** 2
    rest = np.linalg.norm(values - (found.left * found.singular) @ found.right) ** 2
    assert rest <= best + 2 * count * krylov.ACCURACY * s[0] ** 2


def test_too_many_directions_give_way_to_the_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    values = flat(700, 600)
    monkeypatch.setattr(krylov, "WIDEST", 0.06)
    found = dense_triplets(values, 8, name="w")
    s = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    assert found.exact
    np.testing.assert_allclose(found.singular, s[:8], rtol=1e-12)


def test_no_triplets_of_zeros_and_none_of_what_is_not_finite() -> None:
    assert dense_triplets(np.zeros((700, 600), np.float32), 4, name="w").singular.size == 0
    values = flat(700, 600)
    values[3, 5] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        dense_triplets(values, 4, name="w")
