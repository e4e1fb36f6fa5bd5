"""Every method that PEFT has, against PEFT's `add_weighted_adapter` on the same adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.methods import METHODS
from lora_kernels.composing import compose_folders
from lora_kernels.numeric import philox
from tests.kernels.composing.oracle import arithmetic_error, cut_bound, merged, present, truncated
from tests.kernels.composing.peft_models import composed_by_peft, factors, products
from tests.support.adapters import make_adapter, make_base
from tests.support.testbed import require_testbed

UNIT = 2.0**-24
WEIGHTS = [0.7, -0.4, 1.3]
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One rank, scales and targets that differ."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(folder / "0", base, rank=4, alpha=8, seed=1, targets=ALL),
        make_adapter(folder / "1", base, rank=4, alpha=2, seed=2, targets=("q_proj", "up_proj", "down_proj")),
        make_adapter(folder / "2", base, rank=4, alpha=4, seed=3, targets=("q_proj", "v_proj", "down_proj")),
    ]


def composed(adapters: list[Path], out: Path, method: str, weights: list[float] = WEIGHTS, **options: Any) -> Path:
    compose_folders(list(zip(adapters, weights, strict=True)), out, method=method, **options)
    return out


FACTORWISE = [
    ("linear", {}),
    ("cat", {}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.6, "majority_sign_method": "frequency"}),
    ("ties", {"density": 1.0}),
    ("magnitude_prune", {"density": 0.45}),
]


@pytest.mark.parametrize(("method", "options"), FACTORWISE)
def test_factors_are_those_of_peft(
    base: Path, adapters: list[Path], tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    ours = factors(composed(adapters, tmp_path / "out", method, parameters=options))
    theirs = composed_by_peft(base, adapters, WEIGHTS, method, **options)
    assert set(ours) == set(theirs)
    # Weights, their products, two sums of three summands and a quotient, in float32 on either side.
    size = max(abs(tensor).max() for path in adapters for pair in factors(path).values() for tensor in pair)
    for module, (b, a) in theirs.items():
        rank = ours[module][1].shape[0]  # PEFT pads `cat` with zeros
        assert not b[:, rank:].any() and not a[rank:].any()
        for mine, other in zip(ours[module], (b[:, :rank], a[:rank]), strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=2 * 6 * UNIT * 3 * 2 * size, err_msg=module)
            assert np.abs(other).max() > 1e-3


@pytest.mark.parametrize("rank", [None, 2, 7])
def test_svd_is_the_truncated_sum_and_no_farther_from_it_than_peft(
    base: Path, adapters: list[Path], tmp_path: Path, rank: int | None
) -> None:
    report = compose_folders(list(zip(adapters, WEIGHTS, strict=True)), tmp_path / "out", parameters={"rank": rank})
    theirs = composed_by_peft(base, adapters, WEIGHTS, "svd", svd_rank=rank)
    ours, inputs = factors(tmp_path / "out"), [products(path) for path in adapters]
    kept = {module.module: module for module in report.modules}
    for module, (b, a) in theirs.items():
        total = sum(w * p[module] for w, p in zip(WEIGHTS, inputs, strict=True) if module in p)
        best = truncated(total, rank or 4)
        mine = ours[module][0] @ ours[module][1]
        # Either factor is rounded once to float32: the errors of U S and V add up.
        floor = 2 * UNIT * np.linalg.norm(best)
        error = np.linalg.norm(mine - best)
        assert error <= max(floor, np.linalg.norm(b @ a - best))
        assert np.linalg.norm(b @ a - best) <= 200 * floor, "PEFT computes something else"
        assert kept[module].kept == pytest.approx((np.linalg.norm(best) / np.linalg.norm(total)) ** 2, rel=1e-6)


DENSE = [
    ("ties_svd", {"density": 0.3}),
    ("ties_svd", {"density": 0.7, "majority_sign_method": "frequency"}),
    ("magnitude_prune_svd", {"density": 0.4}),
]


def both_are_right(mine: np.ndarray, theirs: np.ndarray, exact: np.ndarray, error: float, rank: int) -> None:
    bound = cut_bound(exact, error, rank)
    best = truncated(exact, rank)
    assert np.linalg.norm(mine - best) <= bound, "ours"
    # A decomposition in float32 adds its own error, a small multiple of the larger side.
    assert np.linalg.norm(theirs - best) <= 8 * max(exact.shape) * bound, "PEFT computes something else"
    assert np.linalg.norm(best) > 100 * bound


@pytest.mark.parametrize(("method", "options"), DENSE)
def test_dense_methods_make_the_product_of_peft(
    base: Path, adapters: list[Path], tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    parameters = {**options, "rank": 5}
    ours = products(composed(adapters, tmp_path / "out", method, parameters=parameters))
    theirs = composed_by_peft(base, adapters, WEIGHTS, method, svd_rank=5, **options)
    assert set(ours) == set(theirs)
    loaded = [factors(path) for path in adapters]
    for module, (b, a) in theirs.items():
        exact = merged(method.removesuffix("_svd"), present(loaded, WEIGHTS, module), **options)
        both_are_right(ours[module], b @ a, exact, arithmetic_error(present(loaded, WEIGHTS, module)), 5)


def drawn_like_ours(monkeypatch: pytest.MonkeyPatch, seed: int, keys: list[tuple[int, str, str]]) -> list[Any]:
    """Let torch.bernoulli hand out our numbers, in the order in which PEFT asks for them."""
    torch = pytest.importorskip("torch")
    left = list(keys)

    def bernoulli(probabilities: Any) -> Any:
        adapter, module, tensor = left.pop(0)
        key = philox.stream_key(seed, f"{adapter}\0{module}\0{tensor}")
        mask = philox.keep_mask(key, 0, probabilities.numel(), float(probabilities.flatten()[0]))
        return torch.from_numpy(mask.astype(np.float32)).reshape(probabilities.shape)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return left


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_dare_is_that_of_peft_with_the_same_numbers(
    base: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    dense = method.endswith("_svd")
    parameters = {"density": 0.5, **({"rank": 5} if dense else {})}
    ours = products(composed(adapters, tmp_path / "out", method, parameters=parameters, seed=11))
    owners = {module: [i for i, path in enumerate(adapters) if module in factors(path)] for module in ours}
    layers = [f"model.layers.{n}.{m}" for n in (0, 1) for m in _order()]
    asked = [
        (adapter, module, tensor)
        for module in layers
        for tensor in (["D"] if dense else ["A", "B"])
        for adapter in owners[module]
    ]
    left = drawn_like_ours(monkeypatch, 11, asked)
    options = {"svd_rank": 5} if dense else {}
    theirs = composed_by_peft(base, adapters, WEIGHTS, method, density=0.5, **options)
    assert not left
    loaded = [factors(path) for path in adapters]
    for module, (b, a) in theirs.items():
        if not dense:
            # As of the methods on factors above, the rescaling by 1 / 0.5 and the product of rank 4 besides.
            room = 2 * 3 * np.abs(b).max() * np.abs(a).max()
            np.testing.assert_allclose(ours[module], b @ a, rtol=0, atol=2 * 8 * UNIT * 4 * room)
            continue
        inputs = present(loaded, WEIGHTS, module)
        masks = [
            philox.keep_mask(philox.stream_key(11, f"{adapter}\0{module}\0D"), 0, b.shape[0] * a.shape[1], 0.5)
            for adapter in owners[module]
        ]
        exact = merged(method.removesuffix("_svd"), inputs, density=0.5, masks=masks)
        both_are_right(ours[module], b @ a, exact, 2 * arithmetic_error(inputs), 5)


def _order() -> list[str]:
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    return [*attention, *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]


def test_every_method_of_peft_is_in_the_table() -> None:
    import typing

    peft_lora = pytest.importorskip("peft.tuners.lora.model")
    hints = typing.get_type_hints(peft_lora.LoraModel.add_weighted_adapter)
    named = set(typing.get_args(hints["combination_type"]))
    assert named == {method.name for method in METHODS.values() if method.peft}


@pytest.mark.parametrize("method", ["svd", "cat"])
def test_trained_adapters_compose_as_peft_composes_them(tmp_path: Path, method: str) -> None:
    names = ["lora-r8-qv-python", "series-sql/v1", "series-sql/v2"]
    folders = [require_testbed() / "adapters" / name for name in names]
    ours = products(composed(folders, tmp_path / "out", method, dtype="float32"))
    theirs = composed_by_peft(require_testbed() / "base", folders, WEIGHTS, method)
    assert set(ours) == set(theirs)
    loaded = [factors(path) for path in folders]
    for module, (b, a) in theirs.items():
        inputs = present(loaded, WEIGHTS, module)
        rank = 1 << 20 if method == "cat" else max(left.shape[1] for path in loaded for left, _ in path.values())
        both_are_right(ours[module], b @ a, merged("linear", inputs), arithmetic_error(inputs), rank)
