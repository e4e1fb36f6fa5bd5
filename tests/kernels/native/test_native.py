"""The inner loops in C and in numpy: the same rounding, the same refusals, sums that differ by their rounding only."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels import native
from lora_kernels.merging import MergeReport, direct, merge_folder
from lora_kernels.merging import tensor as tensor_module
from lora_kernels.numeric.dtypes import decode, encode
from tests.kernels.checkpoints import matrix, pair, write_adapter, write_base

ROOT = Path(__file__).resolve().parents[3]
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"

pytestmark = pytest.mark.skipif(native.add_round_bf16() is None, reason="installed without a C compiler")


def run(weight, product, scale):
    add_round = native.add_round_bf16()
    assert add_round is not None
    out, sums = bytearray(b"\xa5" * 2 * weight.size), np.zeros(4)
    finite = add_round(memoryview(weight.tobytes()), product, np.float32(scale), memoryview(out), sums)
    return finite, np.frombuffer(out, np.uint16), sums


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000, 65536])
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.3, -1e-3])
def test_as_numpy_does(count: int, scale: float) -> None:
    rng = np.random.default_rng(count)
    weight = (rng.standard_normal(count).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    product = (rng.standard_normal(count) * 10.0 ** rng.integers(-42, 3, count)).astype(np.float32)
    finite, out, sums = run(weight, product, scale)
    old = decode(weight, "BF16", np.empty(count, np.float32))
    delta = product * np.float32(scale)
    expected = encode(old + delta, "BF16", np.empty(count, np.uint16))
    assert finite
    assert np.array_equal(out, expected)
    realised = decode(expected, "BF16", np.empty(count, np.float32)) - old
    wide, found = delta.astype(np.float64), realised.astype(np.float64)
    for seen, terms in zip(sums, [wide * wide, found * wide, found * found], strict=False):
        # 64 floats in each of the chains over a strip, the square rounded first; the doubles count for nothing beside.
        assert abs(seen - math.fsum(terms)) <= 66 * 2.0**-24 * math.fsum(abs(terms))
    assert sums[3] == (np.abs(delta).max() if count else 0)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e18, 1e30])
def test_sums_of_what_has_no_square_in_float32(size: float) -> None:
    rng = np.random.default_rng(7)
    weight = np.zeros(3000, np.uint16)
    product = (rng.standard_normal(3000) * size).astype(np.float32)
    finite, out, sums = run(weight, product, 1.0)
    assert finite
    wide, found = product.astype(np.float64), decode(out, "BF16", np.empty(3000, np.float32)).astype(np.float64)
    assert sums[:3] == pytest.approx([wide @ wide, found @ wide, found @ found], rel=1e-5, abs=0)


def test_every_bfloat16_pattern_and_ties() -> None:
    """All weights, with updates that fall exactly between two neighbours, and just beside."""
    weight = np.arange(1 << 16, dtype=np.uint16)
    weight = weight[(weight & 0x7F80) != 0x7F80]
    old = decode(weight, "BF16", np.empty(weight.size, np.float32))
    for bits in (0x8000, 0x7FFF, 0x8001, 0x18000):
        merged = (old.view(np.uint32) + np.uint32(bits)).view(np.float32)
        fits = (merged.view(np.uint32) & 0x7FFFFFFF) < 0x7F7F8000
        delta = merged[fits] - old[fits]
        finite, out, _ = run(weight[fits], delta, 1.0)
        assert finite
        assert np.array_equal(out, encode(old[fits] + delta, "BF16", np.empty(delta.size, np.uint16)))


@pytest.mark.parametrize("at", [0, 15, 16, 32])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_told(at: int, bad: float) -> None:
    weight, product = np.zeros(33, np.uint16), np.zeros(33, np.float32)
    product[at] = bad
    assert not run(weight, product, 1.0)[0]
    product[at], weight[at] = 0, {np.inf: 0x7F80, -np.inf: 0xFF80}.get(bad, 0x7FFF)
    assert not run(weight, product, 1.0)[0]


def test_the_largest_that_does_not_round_to_infinity() -> None:
    weight = np.full(16, 0x7F7F, np.uint16)
    half = np.float32(2.0**119)
    below = np.nextafter(half, np.float32(0), dtype=np.float32)
    assert run(weight, np.full(16, below - np.float32(2.0**104), np.float32), 1.0)[0]
    assert not run(weight, np.full(16, half, np.float32), 1.0)[0]


def test_what_does_not_fit_is_refused() -> None:
    add_round = native.add_round_bf16()
    assert add_round is not None
    product, sums, one = np.zeros(4, np.float32), np.zeros(4), np.float32(1)
    for weight, values, out, found in [
        (bytes(6), product, bytearray(8), sums),
        (bytes(8), product, bytearray(6), sums),
        (bytes(8), np.zeros(8, np.float32)[::2], bytearray(8), sums),
        (bytes(8), np.zeros(4), bytearray(8), sums),
        (bytes(8), product, bytearray(8), np.zeros(3)),
    ]:
        with pytest.raises(ValueError, match="do not match"):
            add_round(memoryview(weight), values, one, memoryview(out), found)  # type: ignore[arg-type]


def fused(total: Fraction) -> np.float32:
    """The nearest float32, ties to even, of a number whose magnitude is normal or 0."""
    if not total:
        return np.float32(0)
    exponent = math.floor(math.log2(abs(total))) - 23
    exponent += 1 if abs(total) >= Fraction(2) ** (exponent + 24) else 0
    return np.float32(math.ldexp(round(total / Fraction(2) ** exponent), exponent))


def multiply(left, right):
    call = native.product()
    assert call is not None
    rows, columns = left.shape[0], right.shape[1]
    guarded = np.full(rows * columns + 64, np.nan, np.float32)
    call(left, native.panels(right), guarded[32 : 32 + rows * columns].reshape(rows, columns))
    assert np.isnan(guarded[:32]).all()
    assert np.isnan(guarded[32 + rows * columns :]).all()
    return guarded[32 : 32 + rows * columns].reshape(rows, columns)


@pytest.mark.parametrize(("rows", "rank", "columns"), [(1, 1, 1), (3, 5, 7), (15, 4, 32), (9, 16, 33), (2, 7, 70)])
def test_a_product_is_a_chain_of_fused_multiply_adds(rows: int, rank: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, rank), (rank, columns)))
    found = multiply(left, right)
    for row in range(rows):
        for column in range(columns):
            sum_ = np.float32(0)
            for k in range(rank):
                sum_ = fused(Fraction(float(left[row, k])) * Fraction(float(right[k, column])) + Fraction(float(sum_)))
            assert found[row, column] == sum_


@pytest.mark.parametrize("rows", [0, 1, 2, 4, 8, 13, 32])
@pytest.mark.parametrize("columns", [1, 31, 32, 100])
@pytest.mark.parametrize("rank", [0, 1, 64, 300])
def test_products_of_any_shape_and_strides(rows: int, columns: int, rank: int) -> None:
    """Whatever the strides and however many rows are together, the bits of an element are the same."""
    rng = np.random.default_rng(rank)
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, rank), (rank, columns)))
    found = multiply(left, right)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    bound = (rank + 1) * 2.0**-24 * (np.abs(left).astype(np.float64) @ np.abs(right).astype(np.float64))
    assert (np.abs(found - exact) <= bound).all()
    assert np.array_equal(multiply(np.asfortranarray(left), np.asfortranarray(right)), found)
    apart = [multiply(left[row : row + 1], right) for row in range(rows)]
    assert np.array_equal(np.concatenate([np.empty((0, columns), np.float32), *apart]), found)


def test_products_that_do_not_fit_are_refused() -> None:
    call = native.product()
    assert call is not None
    left, right, out = np.zeros((4, 2), np.float32), native.panels(np.zeros((2, 40), np.float32)), np.zeros((4, 40))
    fits = out.astype(np.float32)
    for arguments in [
        (left, right, out),
        (left[:3], right, fits),
        (left[:, :1], right, fits),
        (left, right[:1], fits),
        (left, right, np.zeros((4, 80), np.float32)[:, ::2]),
        (left.astype(np.float64), right, fits),
    ]:
        with pytest.raises(ValueError, match="do not match"):
            call(*arguments)  # type: ignore[arg-type]


@dataclass
class Rows:
    """A source of 23 rows of 50 between other bytes, a target as large, and two updates of the rows."""

    source: Path
    target: Path
    updates: list[native.LowRankUpdate]

    def merge(self, updates: list[native.LowRankUpdate], sums, flags: int = os.O_RDWR) -> bool:
        call = native.merge_rows_bf16()
        assert call is not None
        source, target = os.open(self.source, os.O_RDONLY), os.open(self.target, flags)
        try:
            return call((source, 100), (target, 36), updates, 5, 50, sums)
        finally:
            os.close(source)
            os.close(target)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    rng = np.random.default_rng(3)
    weight = (rng.standard_normal(23 * 50).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    (tmp_path / "source").write_bytes(bytes(100) + weight.tobytes() + bytes(9))
    (tmp_path / "target").write_bytes(b"\xa5" * (36 + 2 * 23 * 50 + 77))
    updates = []
    for rank, scale in ((3, 0.5), (8, -1.25)):
        left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((30, rank), (rank, 50)))
        updates.append(native.LowRankUpdate(left[4:27], native.panels(right), np.float32(scale)))
    return Rows(tmp_path / "source", tmp_path / "target", updates)


@pytest.mark.parametrize("count", [1, 2])
def test_rows_go_from_file_to_file_as_blocks_do(rows: Rows, count: int) -> None:
    updates, sums, expected_sums = rows.updates[:count], np.zeros(4), np.zeros(4)
    assert rows.merge(updates, sums)
    product, add_round = native.product(), native.add_round_bf16()
    assert product is not None
    assert add_round is not None
    weight, expected = rows.source.read_bytes()[100:2400], bytearray(2300)
    for row in range(0, 23, 5):
        some = slice(row, min(row + 5, 23))
        change, other = (np.empty((some.stop - row, 50), np.float32) for _ in range(2))
        product(updates[0].left[some], updates[0].panels, change)
        scale = updates[0].scale
        if count == 2:
            product(updates[1].left[some], updates[1].panels, other)
            change, scale = change * scale + other * updates[1].scale, np.float32(1)
        part = slice(100 * row, 100 * some.stop)
        assert add_round(memoryview(weight)[part], change, scale, memoryview(expected)[part], expected_sums)
    assert rows.target.read_bytes() == b"\xa5" * 36 + expected + b"\xa5" * 77
    assert np.array_equal(sums, expected_sums)


def test_rows_that_cannot_go_are_told(rows: Rows) -> None:
    huge = native.LowRankUpdate(
        np.full((23, 1), 1e30, np.float32), native.panels(np.full((1, 50), 1e30, np.float32)), rows.updates[0].scale
    )
    assert not rows.merge([huge], np.zeros(4))
    assert not rows.merge(rows.updates, np.zeros(4), flags=os.O_RDONLY)
    os.truncate(rows.source, 100 + 2 * 23 * 50 - 1)
    assert not rows.merge(rows.updates, np.zeros(4))
    with pytest.raises(ValueError, match="do not match"):
        rows.merge([rows.updates[0], rows.updates[1]._replace(left=rows.updates[1].left[1:])], np.zeros(4))


@pytest.mark.parametrize("memory", [1, 1000, 2301, 5000])
def test_bytes_go_from_file_to_file(rows: Rows, memory: int) -> None:
    call = native.copy_bytes()
    assert call is not None
    with rows.source.open("rb") as source, rows.target.open("r+b") as target:
        places = (source.fileno(), 100), (target.fileno(), 36)
        assert call(*places, 2301, memoryview(bytearray(memory)))
        assert not call(*places, 2310, memoryview(bytearray(memory)))
    assert rows.target.read_bytes()[36:2337] == rows.source.read_bytes()[100:2401]
    assert rows.target.read_bytes()[:36] + rows.target.read_bytes()[2345:] == b"\xa5" * (36 + 36 + 2300 + 77 - 2345)


@pytest.mark.parametrize("without", [["merge_rows_bf16"], ["merge_rows_bf16", "copy_bytes"]])
def test_merges_by_blocks_are_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: list[str]
) -> None:
    one = write_adapter(tmp_path / "one", pair(Q, out=700, in_=300, r=4, seed=4))
    two = write_adapter(tmp_path / "two", pair(Q, out=700, in_=300, r=8, seed=5), r=8)
    for adapters in [[(one, 0.7)], [(one, 0.7), (two, -0.3)]]:
        by_rows, bytes_by_rows = merged(base, adapters, tmp_path / f"rows{len(adapters)}")
        with monkeypatch.context() as patch:
            for name in without:
                patch.setattr(direct, name, lambda: None)
            by_blocks, bytes_by_blocks = merged(base, adapters, tmp_path / f"blocks{len(adapters)}")
        assert bytes_by_rows == bytes_by_blocks
        assert (by_rows.kept, by_rows.cosine, by_rows.max_delta) == (
            by_blocks.kept,
            by_blocks.cosine,
            by_blocks.max_delta,
        )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors = {f"{Q}.weight": ("BF16", matrix(700, 300, seed=1)), f"{V}.weight": ("BF16", matrix(33, 300, seed=2))}
    return write_base(tmp_path / "base", [tensors], dtype="bfloat16")


def merged(base: Path, adapters: list[tuple[Path, float]], out: Path) -> tuple[MergeReport, str]:
    report = merge_folder(base, adapters, out)
    return report, hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def test_merges_are_the_same_without_it(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write_adapter(tmp_path / "one", pair(Q, out=700, in_=300, r=4, seed=4))
    two = write_adapter(
        tmp_path / "two", {**pair(Q, out=700, in_=300, r=8, seed=5), **pair(V, out=33, in_=300, r=8, seed=6)}, r=8
    )
    adapters = [(one, 0.7), (two, -0.3)]
    with_it, bytes_with = merged(base, adapters, tmp_path / "with")
    monkeypatch.setattr(tensor_module, "add_round_bf16", lambda: None)
    without, bytes_without = merged(base, adapters, tmp_path / "without")
    assert bytes_with == bytes_without
    assert with_it.max_delta == without.max_delta
    assert with_it.kept == pytest.approx(without.kept, rel=1e-5)
    assert with_it.cosine == pytest.approx(without.cosine, rel=1e-5)


def test_numpy_alone_merges_the_same_but_for_the_last_bits_of_products(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(tmp_path / "one", pair(Q, out=700, in_=300, r=64, seed=4), r=64)
    merged(base, [(adapter, 1.0)], tmp_path / "with")
    monkeypatch.setattr(native, "product", lambda: None)
    merged(base, [(adapter, 1.0)], tmp_path / "without")
    one, two = (
        np.frombuffer((tmp_path / name / "model.safetensors").read_bytes(), np.uint8) for name in ("with", "without")
    )
    differing = np.flatnonzero(one != two)
    # Neighbours in bfloat16, where the sum lies within float32's error of a tie.
    assert differing.size <= 700 * 300 // 1000


def test_refusals_are_the_same_with_it(base: Path, tmp_path: Path) -> None:
    huge = {
        f"{Q}.lora_A.weight": ("F32", np.full((4, 300), 1e20)),
        f"{Q}.lora_B.weight": ("F32", np.full((700, 4), 1e20)),
    }
    with pytest.raises(RegistryError, match="exceed the range of BF16"):
        merge_folder(base, [(write_adapter(tmp_path / "huge", huge), 1.0)], tmp_path / "out")


def test_without_a_compiler_the_build_says_so_and_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "hatch_build.py"], env={"CC": "/nowhere/cc", "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "numpy alone" in done.stderr
