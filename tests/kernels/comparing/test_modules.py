"""Comparisons from factors against the same from dense products in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_kernels.adapters import LowRankModule
from lora_kernels.comparing import compare_folders, compare_modules
from tests.support.command import TINY


def module(seed: int, rank: int, scale: float = 0.5, outputs: int = 24, columns: int = 40) -> LowRankModule:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, columns)), rng.normal(size=(outputs, rank))
    return LowRankModule("m", "linear", a.astype(np.float32), b.astype(np.float32), scale)


def dense(of: LowRankModule) -> np.ndarray:
    return of.scale * of.b.astype(np.float64) @ of.a.astype(np.float64)


@pytest.mark.parametrize(("first", "second"), [(3, 3), (2, 7), (8, 1)])
def test_norms_cosine_and_overlap_are_those_of_the_products(first: int, second: int) -> None:
    one, other = module(1, first), module(2, second, scale=-2.0)
    found = compare_modules(one, other)
    x, y = dense(one), dense(other)
    assert found.before == pytest.approx(np.linalg.norm(x), rel=1e-12)
    assert found.difference == pytest.approx(np.linalg.norm(x - y), rel=1e-12)
    assert found.cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
    u, v = np.linalg.svd(x)[0][:, :first], np.linalg.svd(y)[0][:, :second]
    assert found.outputs == pytest.approx(np.linalg.norm(u.T @ v) ** 2 / min(first, second), abs=1e-9)
    u, v = np.linalg.svd(x)[2][:first].T, np.linalg.svd(y)[2][:second].T
    assert found.inputs == pytest.approx(np.linalg.norm(u.T @ v) ** 2 / min(first, second), abs=1e-9)


def test_the_same_update_in_other_factors_spans_the_same(tmp_path: Path) -> None:
    one = module(3, 4)
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(4, 4)))[0].astype(np.float32)
    other = LowRankModule("m", "linear", turn.T @ one.a, one.b @ turn, one.scale)
    found = compare_modules(one, other)
    assert (found.state, found.inputs, found.outputs) == ("changed", pytest.approx(1), pytest.approx(1))
    assert found.difference < 1e-5 * found.before
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert compare_modules(one, one).state == "same"


def test_what_one_lacks_and_what_is_zero() -> None:
    one = module(5, 2)
    added, removed = compare_modules(None, one), compare_modules(one, None)
    assert (added.state, added.before, added.difference) == ("added", 0.0, added.after)
    assert (removed.state, removed.after, removed.difference) == ("removed", 0.0, removed.before)
    zero = LowRankModule("m", "linear", one.a, np.zeros_like(one.b), one.scale)
    found = compare_modules(zero, one)
    assert (found.cosine, found.inputs) == (None, None)
    assert found.difference == pytest.approx(found.after)


def test_whole_adapters_are_ranked_by_what_changed_most() -> None:
    first, second = (TINY / "adapters" / f"queries-v{number}" for number in (1, 2))
    found = compare_folders(first, second)
    differences = [module.difference for module in found.modules]
    assert differences == sorted(differences, reverse=True)
    assert found.difference == pytest.approx(np.sqrt(sum(value**2 for value in differences)))
    same = compare_folders(first, first)
    assert (same.difference, same.cosine, {module.state for module in same.modules}) == (
        0.0,
        pytest.approx(1),
        {"same"},
    )
