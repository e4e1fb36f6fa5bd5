"""The inner loop in C and in numpy: the same bytes, the same refusals, sums that differ by their rounding only."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_kernels import native
from lora_kernels.merging import MergeReport, merge_folder
from lora_kernels.merging import tensor as tensor_module
from lora_kernels.merging.numerics import decode, encode
from lora_reg.spec.errors import RegistryError
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
        # A sum of n doubles in any order is off by at most n units of the sum of magnitudes.
        assert abs(seen - math.fsum(terms)) <= count * 2.0**-53 * math.fsum(abs(terms))
    assert sums[3] == (np.abs(delta).max() if count else 0)


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
        with pytest.raises(ValueError, match="do not fit"):
            add_round(memoryview(weight), values, one, memoryview(out), found)  # type: ignore[arg-type]


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
