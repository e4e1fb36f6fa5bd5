"""The numbers of a merge, on shapes and options that trained adapters seldom show, against float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from lora_kernels.numeric import blocks
from tests.kernels.checkpoints import exact, matrix, pair, read_model, write_adapter, write_base
from tests.support.oracle import round_bf16

Q = "model.layers.0.self_attn.q_proj"


def delta64(tensors: Any, module: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """B @ A in float64."""
    a, b = (tensors[f"{module}.lora_{half}.weight"][1].astype(np.float64) for half in "AB")
    return b @ a


def merged(
    tmp_path: Path, base: Path, adapters: list[tuple[Path, float]], **options: Any
) -> dict[str, tuple[str, Any]]:
    out = tmp_path / "out"
    merge_folder(base, adapters, out, **options)
    return read_model(out)


def assert_rounds_to(bits: Any, expected: np.ndarray[Any, Any], magnitude: np.ndarray[Any, Any], rank: int) -> None:
    """Every bf16 element is what a value within float32's own error of `expected` rounds to."""
    error = (rank + 4) * 2.0**-24 * magnitude
    got = exact("BF16", bits)
    low, high = exact("BF16", round_bf16(expected - error)), exact("BF16", round_bf16(expected + error))
    assert ((low <= got) & (got <= high)).all()
    assert np.count_nonzero(bits != round_bf16(expected)) <= max(2, bits.size // 1000)


@pytest.mark.parametrize(
    ("out", "in_", "r"),
    [
        (1, 1, 1),
        (7, 13, 1),
        (257, 509, 3),
        (3, 70001, 2),
        (70001, 3, 2),
        (64, 1024, 16),
        (2, 1 << 16, 1),
        (509, 257, 64),
    ],
)
def test_odd_shapes(tmp_path: Path, out: int, in_: int, r: int) -> None:
    weight = matrix(out, in_, seed=1)
    tensors = pair(Q, out=out, in_=in_, r=r, seed=2)
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", weight)}])
    adapter = write_adapter(tmp_path / "adapter", tensors, r=r, lora_alpha=r * 1.7)
    dtype, bits = merged(tmp_path, base, [(adapter, 1.0)])[f"{Q}.weight"]
    w = exact("BF16", round_bf16(weight))
    delta = 1.7 * delta64({n: (d, v.astype(np.float32)) for n, (d, v) in tensors.items()}, Q)
    assert dtype == "BF16"
    assert_rounds_to(
        bits,
        w + delta,
        np.abs(w) + 1.7 * np.abs(tensors[f"{Q}.lora_B.weight"][1]) @ np.abs(tensors[f"{Q}.lora_A.weight"][1]),
        r,
    )


def test_weights_sum_in_order_with_negative_and_zero_ones(tmp_path: Path) -> None:
    weight = matrix(64, 96, seed=1)
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("F32", weight)}])
    ranks, weights = (4, 2, 7), (0.75, -1.25, 0.0)
    parts = [pair(Q, out=64, in_=96, r=r, seed=10 + r) for r in ranks]
    adapters = [
        (write_adapter(tmp_path / f"adapter{r}", part, r=r, lora_alpha=3 * r), weight)
        for r, part, weight in zip(ranks, parts, weights, strict=True)
    ]
    _, got = merged(tmp_path, base, adapters)[f"{Q}.weight"]
    deltas = [
        3 * w * delta64({n: (d, v.astype(np.float32)) for n, (d, v) in p.items()}, Q)
        for p, w in zip(parts, weights, strict=True)
    ]
    expected = weight.astype(np.float32) + sum(deltas)
    np.testing.assert_allclose(got, expected, rtol=0, atol=16 * 2.0**-24 * np.abs(expected).max())
    assert np.abs(got - weight.astype(np.float32)).max() > 0.01


def test_order_of_rounding_is_product_scale_sum_then_one_addition(tmp_path: Path) -> None:
    """Bit for bit what numpy gives in float32 in the documented order, over several blocks."""
    weight = matrix(600, 300, seed=1)
    parts = [pair(Q, out=600, in_=300, r=r, seed=r) for r in (3, 5)]
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("F32", weight)}])
    adapters = [
        (write_adapter(tmp_path / f"a{i}", part, r=r, lora_alpha=0.3), 0.9)
        for i, (r, part) in enumerate(zip((3, 5), parts, strict=True))
    ]
    _, got = merged(tmp_path, base, adapters)[f"{Q}.weight"]
    rows = blocks.BLOCK // 300
    for start in range(0, 600, rows):
        block = slice(start, start + rows)
        first, second = (
            (part[f"{Q}.lora_B.weight"][1].astype(np.float32)[block] @ part[f"{Q}.lora_A.weight"][1].astype(np.float32))
            * np.float32(0.3 / r * 0.9)
            for r, part in zip((3, 5), parts, strict=True)
        )
        np.testing.assert_array_equal(got[block], weight.astype(np.float32)[block] + (first + second))


def test_weight_zero_gives_the_base_bytes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", matrix(64, 96, seed=1))}])
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=64, in_=96, r=4, seed=2))
    report = merge_folder(base, [(adapter, 0.0)], tmp_path / "out")
    np.testing.assert_array_equal(read_model(tmp_path / "out")[f"{Q}.weight"][1], read_model(base)[f"{Q}.weight"][1])
    assert (report.kept, report.cosine, report.max_delta) == (None, None, 0.0)


def test_pruned_module_of_rank_zero_changes_nothing(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", matrix(64, 96, seed=1))}])
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=64, in_=96, r=0, seed=2))
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    np.testing.assert_array_equal(read_model(tmp_path / "out")[f"{Q}.weight"][1], read_model(base)[f"{Q}.weight"][1])


def test_empty_base_tensor_passes(tmp_path: Path) -> None:
    base = write_base(
        tmp_path / "base",
        [{"model.none.weight": ("BF16", matrix(0, 8, seed=1)), f"{Q}.weight": ("BF16", matrix(8, 8, seed=1))}],
    )
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=8, in_=8, r=4, seed=2))
    assert merged(tmp_path, base, [(adapter, 1.0)])["model.none.weight"][1].shape == (0, 8)


@pytest.mark.parametrize("source", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("factors", ["BF16", "F16", "F32", "F64"])
def test_each_type_onto_each_type_with_one_rounding(
    tmp_path: Path, source: str, dtype: str | None, factors: str
) -> None:
    base = write_base(
        tmp_path / "base",
        [{f"{Q}.weight": (source, matrix(40, 30, seed=1)), "model.norm.weight": (source, matrix(40, seed=3))}],
    )
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=40, in_=30, r=4, seed=2, dtype=factors))
    got = merged(tmp_path, base, [(adapter, 1.0)], dtype=dtype)
    output = {None: source, "bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
    assert {name: value[0] for name, value in got.items()} == {f"{Q}.weight": output, "model.norm.weight": output}
    w = exact(*read_model(base)[f"{Q}.weight"])
    stored = {name.removeprefix("base_model.model."): value for name, value in read_model(adapter).items()}
    expected = w + 2 * exact(*stored[f"{Q}.lora_B.weight"]) @ exact(*stored[f"{Q}.lora_A.weight"])
    unit = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24}[output]  # 8, 11 and 24 significant bits
    error = np.abs(exact(*got[f"{Q}.weight"]) - expected)
    assert (error <= unit * np.abs(expected) + 8 * 2.0**-24 * (np.abs(w) + 1)).all()
    norm = exact(*read_model(base)["model.norm.weight"])
    np.testing.assert_allclose(exact(*got["model.norm.weight"]), norm, rtol=unit)


def test_types_that_are_kept_apart_on_purpose_stay(tmp_path: Path) -> None:
    tensors = {
        f"{Q}.weight": ("BF16", matrix(40, 30, seed=1)),
        "model.router.weight": ("F32", matrix(5, 5, seed=2)),
        "model.steps": ("I64", np.arange(3)),
    }
    base = write_base(tmp_path / "base", [tensors])
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=40, in_=30, r=4, seed=2))
    got = merged(tmp_path, base, [(adapter, 1.0)], dtype="float16")
    assert {name: value[0] for name, value in got.items()} == {
        f"{Q}.weight": "F16",
        "model.router.weight": "F32",
        "model.steps": "I64",
    }
    np.testing.assert_array_equal(got["model.steps"][1], [0, 1, 2])


def test_overflow_of_the_output_type_names_the_tensor(tmp_path: Path) -> None:
    weight, tensors = matrix(40, 30, seed=1), pair(Q, out=40, in_=30, r=4, seed=2, size=40.0)
    weight[39, 29] = np.copysign(65000.0, delta64(tensors, Q)[39, 29])
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("F16", weight)}])
    adapter = write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(RegistryError) as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected"
    assert caught.value.facts == {"tensor": f"{Q}.weight"}
    assert "F16" in caught.value.detail and "65504" in caught.value.detail
    assert not (tmp_path / "out").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", dtype="bfloat16")


def test_conversion_alone_can_overflow(tmp_path: Path) -> None:
    base = write_base(
        tmp_path / "base",
        [{f"{Q}.weight": ("F32", matrix(40, 30, seed=1)), "model.big.weight": ("F32", np.full((3, 3), 7e4))}],
    )
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=40, in_=30, r=4, seed=2))
    with pytest.raises(RegistryError, match=r"model\.big\.weight") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out", dtype="float16")
    assert caught.value.code == "rejected"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_adapter_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    tensors = pair(Q, out=40, in_=30, r=4, seed=2)
    tensors[f"{Q}.lora_B.weight"][1][7, 1] = bad
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", matrix(40, 30, seed=1))}])
    with pytest.raises(RegistryError, match=r"lora_B\.weight has 1 values") as caught:
        merge_folder(base, [(write_adapter(tmp_path / "adapter", tensors), 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected"


def test_base_that_is_not_finite_is_told_apart(tmp_path: Path) -> None:
    weight = matrix(40, 30, seed=1).astype(np.float32)
    weight[3, 3] = np.nan
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("F32", weight)}])
    with pytest.raises(RegistryError, match="The base tensor") as caught:
        merge_folder(
            base, [(write_adapter(tmp_path / "a", pair(Q, out=40, in_=30, r=4, seed=2)), 1.0)], tmp_path / "out"
        )
    assert caught.value.code == "rejected"


@pytest.mark.parametrize("size", [1e-26, 1e-3, 1e24])
def test_kept_and_cosine_are_what_float64_gives(tmp_path: Path, size: float) -> None:
    """Also where squares of the update leave the range of float32."""
    weight = matrix(300, 400, seed=1, size=1.0) * size
    tensors = pair(Q, out=300, in_=400, r=4, seed=2, size=math.sqrt(1e-3 * size))
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", weight)}])
    report = merge_folder(base, [(write_adapter(tmp_path / "a", tensors), 1.0)], tmp_path / "out", min_kept=None)
    w, new = exact(*read_model(base)[f"{Q}.weight"]), exact(*read_model(tmp_path / "out")[f"{Q}.weight"])
    delta = 2 * delta64({n: (d, v.astype(np.float32)) for n, (d, v) in tensors.items()}, Q)
    realised = new - w
    assert report.kept == pytest.approx((realised * delta).sum() / (delta**2).sum(), rel=1e-4)
    cosine = (realised * delta).sum() / math.sqrt((delta**2).sum() * (realised**2).sum())
    assert report.cosine == pytest.approx(cosine, rel=1e-4)
    assert report.max_delta == pytest.approx(np.abs(delta).max(), rel=1e-5)
    assert [(tensor.name, tensor.elements, tensor.kind) for tensor in report.tensors] == [
        (f"{Q}.weight", 120000, "update")
    ]


def test_merge_that_loses_the_adapter_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", matrix(300, 400, seed=1, size=1.0))}])
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=300, in_=400, r=4, seed=2, size=5e-3))
    with pytest.raises(RegistryError, match="survived the rounding") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected" and caught.value.facts["kept"] < 0.5
    assert "float32" in caught.value.hint
    assert not (tmp_path / "out").exists()
    assert merge_folder(base, [(adapter, 1.0)], tmp_path / "allowed", min_kept=None).kept == pytest.approx(
        caught.value.facts["kept"]
    )
    assert merge_folder(base, [(adapter, 1.0)], tmp_path / "wide", dtype="float32").kept == pytest.approx(1.0, abs=1e-3)
