"""Stochastic rounding: to one of the two neighbours, right in the mean, by the seed alone."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from lora_kernels.numeric.philox import random_bits
from lora_kernels.quantized.absmax import NestedAbsmax
from lora_kernels.quantized.codes import NF4
from lora_kernels.quantized.stochastic import round_bf16, round_nf4
from tests.kernels.checkpoints import exact, matrix, pair, read_model, write_adapter, write_base

Q = "model.layers.0.self_attn.q_proj"
O = "model.layers.0.self_attn.o_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    shards = [
        {f"{name}.weight": ("BF16", matrix(700, 300, seed=seed, size=1.0))} for seed, name in enumerate((Q, O), 1)
    ]
    return write_base(tmp_path / "base", shards)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """So small that rounding to the nearest loses most of it."""
    tensors = {**pair(Q, out=700, in_=300, r=4, seed=3, size=5e-3), **pair(O, out=700, in_=300, r=4, seed=4, size=5e-3)}
    return write_adapter(tmp_path / "adapter", tensors)


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))]


def test_each_weight_becomes_a_neighbour_and_the_mean_stays(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge_folder(base, [(adapter, 1.0)], tmp_path / "wide", dtype="float32")
    report = merge_folder(base, [(adapter, 1.0)], tmp_path / "out", rounding="stochastic", seed=7)
    before, after = read_model(tmp_path / "wide"), read_model(tmp_path / "out")
    for name in before:
        wide, found = before[name][1].astype(np.float64), exact(*after[name])
        bits = before[name][1].view(np.uint32) >> 16
        low, high = (exact("BF16", (bits + up).astype(np.uint16)) for up in (0, 1))
        assert ((found == low) | (found == high)).all()
        step = np.abs(high - low)
        share = (found != low)[step > 0].mean()
        expected = (np.abs(wide - low) / step).mean()
        assert abs(share - expected) < 6 * math.sqrt(0.25 / wide.size)
        # Errors are independent, of mean zero, each at most a step.
        assert abs((found - wide).sum()) < 6 * math.sqrt((step**2).sum() / 4)
    assert report.kept == pytest.approx(1, abs=0.05)
    assert report.tensors[0].sums.cosine is not None and report.tensors[0].sums.cosine < 0.9


def test_the_nearest_loses_what_it_keeps(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="survived the rounding"):
        merge_folder(base, [(adapter, 1.0)], tmp_path / "nearest")


@pytest.mark.parametrize("options", [{}, {"dtype": "nf4"}, {"onto": "nf4"}])
def test_bytes_depend_on_the_seed_alone(base: Path, adapter: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    def merged(name: str, seed: int, threads: int) -> list[str]:
        out = tmp_path / name
        merge_folder(
            base, [(adapter, 1.0)], out, rounding="stochastic", seed=seed, threads=threads, min_kept=None, **options
        )
        return digests(out)

    first = merged("a", 1, 1)
    assert merged("b", 1, 2) == first
    assert merged("c", 2, 1) != first


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_types_are_refused(base: Path, adapter: Path, tmp_path: Path, dtype: str) -> None:
    with pytest.raises(RegistryError, match="Stochastic rounding is for bfloat16 and NF4") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out", dtype=dtype, rounding="stochastic")
    assert caught.value.code == "invalid-request"


def test_unknown_options_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    for options in ({"rounding": "up"}, {"onto": "int8"}, {"dtype": "fp4"}):
        with pytest.raises(RegistryError, match="expected one of") as caught:
            merge_folder(base, [(adapter, 1.0)], tmp_path / "out", **options)
        assert caught.value.code == "invalid-request"


@pytest.mark.parametrize("spread", [16, 8])
def test_the_mean_of_nf4_is_the_weight_also_with_double_quantization(tmp_path: Path, spread: int) -> None:
    """Blocks of very different size, so that double quantization misses the absmax of the small ones by much, and
    even by their sign."""
    size = np.exp2(np.arange(64) / spread).repeat(64)
    weight = (np.random.default_rng(8).uniform(-1, 1, 4096) * size).reshape(64, 64).astype(np.float32)
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("F32", weight)}])
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=64, in_=64, r=4, seed=9))
    found, count = [], 40
    for seed in range(count):
        out = tmp_path / str(seed)
        merge_folder(
            base, [(adapter, 0.0)], out, dtype="nf4", rounding="stochastic", seed=seed, min_kept=None, threads=1
        )
        merge_folder(out, [(adapter, 0.0)], tmp_path / f"{seed}-wide", threads=1)
        found.append(read_model(tmp_path / f"{seed}-wide")[f"{Q}.weight"][1].astype(np.float64))
    parts = [read_model(out)[f"{Q}.weight.{part}"][1] for part in ("absmax", "nested_absmax", "nested_quant_map")]
    (state,) = (raw.tobytes() for name, (_, raw) in read_model(out).items() if "quant_state" in name)
    absmax = NestedAbsmax(*parts, np.float32(json.loads(state)["nested_offset"])).of(0, 64).astype(np.float64)
    assert (absmax < 0).any() == (spread == 8)
    # What lies beyond the largest number of its block cannot be right in the mean.
    inside = np.abs(weight) <= np.abs(absmax)[:, None]
    assert inside.mean() > 0.8
    errors = np.stack(found).mean(axis=0) - weight
    # By how much a block is stretched. An error deviates by at most half a step, the largest of which is 0.31 absmax.
    energy = (weight.astype(np.float64) ** 2 * inside).sum(axis=1)
    stretched = (errors * weight * inside).sum(axis=1)[energy > 0] / energy[energy > 0]
    assert (np.abs(stretched) < 6 * 0.155 * np.abs(absmax[energy > 0]) / np.sqrt(count * energy[energy > 0])).all()


def test_what_bf16_holds_stays() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    values, out = bits.view(np.float32), np.empty(1 << 16, np.uint16)
    round_bf16(values, np.full(1 << 16, 0xFFFFFFFF, np.uint32), out)
    nan = np.isnan(values)
    assert (out[~nan] == (bits >> 16)[~nan]).all()
    assert (out[nan] == 0x7FC0).all() and nan.sum() > 0


def test_what_lies_beyond_the_last_number_may_become_infinite() -> None:
    values = np.array([3.4e38, -3.4e38], np.float32)
    out = np.empty(2, np.uint16)
    assert round_bf16(values, np.full(2, 0xFFFFFFFF, np.uint32), out).tolist() == [0x7F80, 0xFF80]
    assert round_bf16(values, np.zeros(2, np.uint32), out).tolist() == [0x7F7F, 0xFF7F]


def test_nf4_codes_are_neighbours_as_often_as_they_are_near() -> None:
    count = 4000
    points = np.array([-1.5, -1, -0.99, -0.3, 0, 0.05, 0.5, 0.9999, 1, 1.25], np.float32)
    codes = np.empty(points.size * count, np.uint8)
    round_nf4(points.repeat(count), random_bits(5, 0, codes.size), codes)
    means = NF4.values[codes].astype(np.float64).reshape(points.size, count)
    for point, found in zip(points.clip(-1, 1), means, strict=True):
        low, high = found.min(), found.max()
        assert set(found) <= {low, high} and np.searchsorted(NF4.values, high) - np.searchsorted(NF4.values, low) <= 1
        # One of two numbers at random: a deviation of at most half their distance.
        assert abs(found.mean() - point) <= 6 * (high - low) / 2 / math.sqrt(count)
    for number, code in zip(NF4.values, range(16), strict=True):
        round_nf4(np.full(count, number, np.float32), random_bits(6, 0, count), codes[:count])
        assert (codes[:count] == code).all()
