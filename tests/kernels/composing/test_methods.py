"""The methods that PEFT has not, against their formulas in float64 on dense updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_contract.methods import METHODS
from lora_kernels.composing import ComposeReport, compose_folders
from lora_kernels.composing.folder import METHOD_FUNCTIONS
from lora_kernels.numeric import philox
from tests.kernels.checkpoints import pair, write_adapter
from tests.kernels.composing.oracle import (
    UNIT,
    Input,
    arithmetic_error,
    cut_bound,
    elected,
    merged,
    present,
    trimmed,
    truncated,
)
from tests.kernels.composing.peft_models import factors, products

Q, V = "model.layers.0.q_proj", "model.layers.0.v_proj"
WEIGHTS = [0.7, -0.4, 1.3]
WHOLE = 64  # more than any side


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ranks 3, 5 and 2; the third adapter adapts V only, where the second is missing."""
    folder = tmp_path_factory.mktemp("adapters")
    first = {**pair(Q, out=24, in_=18, r=3, seed=1), **pair(V, out=12, in_=18, r=3, seed=2)}
    third = {**pair(Q, out=24, in_=18, r=2, seed=5), **pair(V, out=12, in_=18, r=2, seed=6)}
    return [
        write_adapter(folder / "0", first, r=3, lora_alpha=6),
        write_adapter(folder / "1", pair(Q, out=24, in_=18, r=5, seed=3), r=5, lora_alpha=5),
        write_adapter(folder / "2", third, r=2, lora_alpha=8),
    ]


def compose(folders: list[Path], out: Path, method: str, **options: Any) -> ComposeReport:
    return compose_folders(list(zip(folders, WEIGHTS, strict=True)), out, method=method, **options)


def check(
    folders: list[Path], tmp_path: Path, method: str, expected: Any, room: float = 1.0, **parameters: Any
) -> None:
    """expected: from the inputs of a module and its path, the exact product before any cut."""
    compose(folders, tmp_path / "out", method, parameters=parameters, seed=5)
    loaded, found = [factors(path) for path in folders], products(tmp_path / "out")
    assert set(found) == {Q, V}
    for module in (Q, V):
        inputs = present(loaded, WEIGHTS, module)
        exact = expected(inputs, module)
        rank = min(parameters.get("rank") or WHOLE, np.linalg.matrix_rank(exact))
        bound = cut_bound(exact, room * arithmetic_error(inputs), rank)
        best = truncated(exact, rank)
        assert np.linalg.norm(found[module] - best) <= bound < np.linalg.norm(best) / 100, module


def test_the_table_and_the_functions_name_the_same_methods() -> None:
    assert set(METHOD_FUNCTIONS) == set(METHODS)


@pytest.mark.parametrize("rank", [None, 4])
def test_task_arithmetic_is_the_scaled_sum(folders: list[Path], tmp_path: Path, rank: int | None) -> None:
    check(folders, tmp_path, "task_arithmetic", lambda i, _: 2 * merged("linear", i), 2, scaling=2.0, rank=rank)


def test_exact_sum_takes_no_more_rank_than_it_has(folders: list[Path], tmp_path: Path) -> None:
    twice = [folders[0], folders[0]]
    report = compose_folders([(path, 0.5) for path in twice], tmp_path / "out", method="task_arithmetic")
    assert [(module.rank, module.kept) for module in report.modules] == [(3, 1.0), (3, 1.0)]
    whole, once = products(tmp_path / "out"), products(folders[0])
    for module in (Q, V):
        assert np.linalg.norm(whole[module] - once[module]) <= 2 * UNIT * np.linalg.norm(once[module])


def test_breadcrumbs_drop_both_ends(folders: list[Path], tmp_path: Path) -> None:
    def expected(inputs: list[Input], _: str) -> np.ndarray:
        total = np.zeros_like(inputs[0].delta)
        for part in inputs:
            order = np.argsort(-np.abs(part.delta), axis=None)
            top = int(0.05 * order.size)
            keep = np.zeros(order.size, bool)
            keep[order[top : top + int(0.6 * order.size)]] = True
            total += 1.5 * part.weight * part.delta * keep.reshape(total.shape)
        return total

    check(folders, tmp_path, "breadcrumbs", expected, 1.5, density=0.6, gamma=0.05, scaling=1.5, rank=WHOLE)


def test_della_keeps_the_larger_elements_of_a_row_sooner(folders: list[Path], tmp_path: Path) -> None:
    adapters = {Q: (0, 1, 2), V: (0, 2)}

    def expected(inputs: list[Input], module: str) -> np.ndarray:
        values = []
        for adapter, part in zip(adapters[module], inputs, strict=True):
            places = np.abs(part.delta).argsort(axis=1).argsort(axis=1)
            columns = part.delta.shape[1]
            chance = 0.6 - 0.3 / 2 + 0.3 * (places + 0.5) / columns
            key = philox.stream_key(5, f"{adapter}\0{module}\0D")
            drawn = philox.uniform(key, 0, part.delta.size).reshape(part.delta.shape)
            values.append(np.where(drawn < chance, part.weight * part.delta / chance, 0))
        return elected(np.stack(values), np.ones((len(values), 1, 1)))

    check(folders, tmp_path, "della", expected, 1 / 0.45, density=0.6, epsilon=0.3, rank=WHOLE)


def test_sce_selects_weighs_and_erases(folders: list[Path], tmp_path: Path) -> None:
    def expected(inputs: list[Input], _: str) -> np.ndarray:
        values = np.stack([part.weight * part.delta for part in inputs])
        selected = trimmed(values.var(axis=0), 0.4) > 0
        values = values * selected
        shares = (values**2).sum(axis=(1, 2)) / (values**2).sum()
        agree = (np.sign(values) == np.where(values.sum(axis=0) >= 0, 1, -1)) & (values != 0)
        below = (shares[:, None, None] * agree).sum(axis=0)
        above = (shares[:, None, None] * agree * values).sum(axis=0)
        return np.divide(above, below, out=np.zeros_like(above), where=below > 0)

    # The shares have errors of their own, once above and once below the line.
    check(folders, tmp_path, "sce", expected, 3.0, density=0.4, rank=WHOLE)


def test_knots_votes_on_shared_directions(folders: list[Path], tmp_path: Path) -> None:
    def expected(inputs: list[Input], _: str) -> np.ndarray:
        u, s, v = np.linalg.svd(np.hstack([part.delta for part in inputs]), full_matrices=False)
        rank = sum(part.a.shape[0] for part in inputs)
        blocks = np.split(v[:rank], len(inputs), axis=1)
        weights = np.array([part.weight for part in inputs])[:, None, None]
        return (u[:, :rank] * s[:rank]) @ elected(np.stack([trimmed(block, 0.4) for block in blocks]), weights)

    # V is rounded to float32 once; U S multiplies it, whose norm is that of all updates.
    check(folders, tmp_path, "knots", expected, 4.0, density=0.4, rank=WHOLE)


def test_tsv_makes_the_vectors_of_all_orthogonal(folders: list[Path], tmp_path: Path) -> None:
    def nearest(vectors: np.ndarray) -> np.ndarray:
        u, _, v = np.linalg.svd(vectors, full_matrices=False)
        return u @ v

    def expected(inputs: list[Input], _: str) -> np.ndarray:
        lefts, singular, rights = [], [], []
        for number, part in enumerate(inputs):
            share = 7 // len(inputs) + (number < 7 % len(inputs))
            u, s, v = np.linalg.svd(part.weight * part.delta)
            share = min(share, part.a.shape[0])
            lefts.append(u[:, :share])
            singular.append(s[:share])
            rights.append(v[:share].T)
        return nearest(np.hstack(lefts)) * np.concatenate(singular) @ nearest(np.hstack(rights)).T

    check(folders, tmp_path, "tsv", expected, rank=7)
    with pytest.raises(RegistryError, match="rank 2 among the 3 adapters") as caught:
        compose(folders, tmp_path / "few", "tsv", parameters={"rank": 2})
    assert caught.value.code == "invalid-request" and not (tmp_path / "few").exists()


def test_iso_c_has_one_singular_value(folders: list[Path], tmp_path: Path) -> None:
    compose(folders, tmp_path / "out", "iso_c", parameters={"rank": 4, "scaling": 0.5})
    loaded, found = [factors(path) for path in folders], products(tmp_path / "out")
    for module in (Q, V):
        u, s, v = np.linalg.svd(merged("linear", present(loaded, WEIGHTS, module)), full_matrices=False)
        best = 0.5 * s[:4].mean() * u[:, :4] @ v[:4]
        assert np.linalg.norm(found[module] - best) <= 2 * UNIT * np.linalg.norm(best)


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_model_stock_goes_as_far_as_the_updates_agree(tmp_path: Path, shared: float) -> None:
    common = pair(Q, out=24, in_=18, r=3, seed=9)
    parts = []
    for seed in (1, 2, 3):
        own = pair(Q, out=24, in_=18, r=3, seed=seed)
        mixed = {name: ("F32", shared * common[name][1] + (1 - shared) * own[name][1]) for name in own}
        parts.append(write_adapter(tmp_path / str(seed), mixed, r=3, lora_alpha=3))
    compose_folders([(path, 1.0) for path in parts], tmp_path / "out", method="model_stock")
    deltas = [products(path)[Q] for path in parts]
    cosines = [
        np.vdot(deltas[i], deltas[j]) / np.linalg.norm(deltas[i]) / np.linalg.norm(deltas[j])
        for i in range(3)
        for j in range(i)
    ]
    cosine = np.mean(cosines)
    assert cosine > (0.5 if shared else 0)
    expected = 3 * cosine / (1 + 2 * cosine) * sum(deltas) / 3
    assert np.linalg.norm(products(tmp_path / "out")[Q] - expected) <= 2 * UNIT * np.linalg.norm(expected) + 1e-12


def test_model_stock_of_updates_against_each_other_is_nothing(folders: list[Path], tmp_path: Path) -> None:
    pairs = [(folders[0], 1.0), (folders[0], -1.0)]
    with pytest.raises(RegistryError, match="The result has no module"):
        compose_folders(pairs, tmp_path / "out", method="model_stock")
    alone = compose_folders(pairs[:1], tmp_path / "alone", method="model_stock")
    assert alone.kept == 1.0 and [module.rank for module in alone.modules] == [3, 3]
