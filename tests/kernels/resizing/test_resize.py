"""Adapters at another rank, against numpy's decomposition of the whole update in float64."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_contract.errors import RegistryError
from lora_kernels.resizing import resize_folder
from tests.kernels.checkpoints import Tensors, exact, matrix, pair, read_raw, write_adapter

Q, K, UP = (f"model.layers.0.{part}" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"))
STEP = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}


def updates(folder: Path) -> dict[str, NDArray[np.float64]]:
    """s B A by module, in float64, with the scale that an engine would read from r and lora_alpha alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = {name: exact(*value) for name, value in read_raw(folder / "adapter_model.safetensors").items()}
    found = {}
    for name, a in stored.items():
        if ".lora_A." in name or name.endswith("lora_embedding_A"):
            b = stored[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
            module = name.removeprefix("base_model.model.").partition(".lora_")[0]
            product = b.reshape(len(b), -1) @ a.reshape(len(a), -1)
            found[module] = config["lora_alpha"] / config["r"] * product
    return found


def falling(module: str, *, out: int, in_: int, r: int, seed: int, dtype: str = "F32", fall: float = 0.6) -> Tensors:
    """A pair whose product has falling singular values."""
    tensors = dict(pair(module, out=out, in_=in_, r=r, seed=seed, dtype=dtype))
    name = f"{module}.lora_B.weight"
    tensors[name] = (dtype, tensors[name][1] * fall ** np.arange(r))
    return tensors


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tensors = {**falling(Q, out=40, in_=30, r=8, seed=1), **falling(UP, out=20, in_=50, r=8, seed=2, fall=0.9)}
    return write_adapter(tmp_path / "adapter", tensors, r=8, lora_alpha=8, target_modules=["q_proj", "up_proj"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_error_is_that_of_the_best_approximation(adapter: Path, tmp_path: Path, rank: int, dtype: str) -> None:
    report = resize_folder(adapter, tmp_path / "out", rank=rank, dtype=dtype)
    before, after = updates(adapter), updates(tmp_path / "out")
    kind = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    assert {stored for stored, _ in read_raw(tmp_path / "out" / "adapter_model.safetensors").values()} == {kind}
    assert set(before) == set(after) and report.rank == rank
    for told in report.modules:
        update = before[told.module]
        norm = float(np.linalg.norm(update))
        rest = float(np.linalg.norm(update - after[told.module]))
        best = float(np.sqrt(np.sum(np.linalg.svd(update, compute_uv=False)[rank:] ** 2)))
        # The factors are rounded once each; the norm of each balanced factor is the root of the update's nuclear norm,
        # at most the root of sqrt(rank) times its own.
        rounding = 2 * STEP[kind] * rank**0.5 * norm
        assert best * (1 - 1e-12) <= rest <= best + rounding
        assert told.relative_error == pytest.approx(rest / norm, rel=1e-9, abs=1e-12)
        assert told.kept_energy == pytest.approx(1 - (rest / norm) ** 2, abs=1e-12)
        assert (told.rank_before, told.rank) == (8, rank) and told.update_norm == pytest.approx(norm, rel=1e-12)
    squares = {told.module: told.update_norm**2 for told in report.modules}
    lost = sum(told.relative_error**2 * squares[told.module] for told in report.modules)
    assert report.kept_energy == pytest.approx(1 - lost / sum(squares.values()), abs=1e-12)


def test_kept_energy_is_reached_by_the_least_rank(adapter: Path, tmp_path: Path) -> None:
    report = resize_folder(adapter, tmp_path / "out", keep_energy=0.9)
    before = updates(adapter)
    for told in report.modules:
        held = np.cumsum(np.linalg.svd(before[told.module], compute_uv=False) ** 2)
        needed = int(np.flatnonzero(held >= 0.9 * held[-1])[0]) + 1
        assert told.rank == needed and told.kept_energy >= 0.9 * (1 - 1e-6)
        assert held[needed - 2] < 0.9 * held[-1]
    assert len({told.rank for told in report.modules}) == 2
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] and len(config["rank_pattern"]) == 1
    everything = resize_folder(adapter, tmp_path / "all", keep_energy=1.0)
    assert {told.rank for told in everything.modules} == {8}


def test_a_larger_rank_holds_nothing_more(adapter: Path, tmp_path: Path) -> None:
    for rank in (8, 64):
        report = resize_folder(adapter, tmp_path / f"out-{rank}", rank=rank)
        assert report.rank == 8 and report.relative_error == 0 and report.kept_energy == 1
        assert (tmp_path / f"out-{rank}" / "adapter_model.safetensors").exists()
        for module, update in updates(tmp_path / f"out-{rank}").items():
            np.testing.assert_array_equal(update, updates(adapter)[module])


def test_scales_of_all_kinds_go_into_the_factors(tmp_path: Path) -> None:
    tensors = {
        **falling(Q, out=40, in_=30, r=8, seed=1),
        **falling(K, out=10, in_=30, r=2, seed=2),
        **falling(UP, out=20, in_=50, r=4, seed=3),
    }
    folder = write_adapter(
        tmp_path / "adapter", tensors, r=8, lora_alpha=24, use_rslora=True, rank_pattern={"k_proj": 2, "up_proj": 4},
        alpha_pattern={"up_proj": 3}, target_modules=["q_proj", "k_proj", "up_proj"],
    )  # fmt: skip
    report = resize_folder(folder, tmp_path / "out", rank=3)
    stored = {name: exact(*value) for name, value in read_raw(folder / "adapter_model.safetensors").items()}
    scales = {Q: 24 / 8**0.5, K: 24 / 2**0.5, UP: 3 / 4**0.5}
    after = updates(tmp_path / "out")
    assert {told.module: told.rank for told in report.modules} == {Q: 3, K: 2, UP: 3}
    for module, scale in scales.items():
        a, b = (stored[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        left, singular, right = np.linalg.svd(scale * b @ a, full_matrices=False)
        best = (left[:, :3] * singular[:3]) @ right[:3]
        np.testing.assert_allclose(after[module], best, atol=4 * STEP["F32"] * float(singular[0]))


def test_modules_without_effect_are_dropped_by_name(tmp_path: Path) -> None:
    tensors = {**falling(Q, out=40, in_=30, r=4, seed=1), **falling(K, out=10, in_=30, r=4, seed=2)}
    tensors[f"{K}.lora_B.weight"] = ("F32", np.zeros((10, 4)))
    folder = write_adapter(tmp_path / "adapter", tensors, target_modules=["q_proj", "k_proj"])
    report = resize_folder(folder, tmp_path / "out", rank=2)
    assert report.dropped == (K,) and [told.module for told in report.modules] == [Q]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"] == [Q]
    tensors[f"{Q}.lora_B.weight"] = ("F32", np.zeros((40, 4)))
    zero = write_adapter(tmp_path / "zero", tensors, target_modules=["q_proj", "k_proj"])
    with pytest.raises(RegistryError, match="The result has no module"):
        resize_folder(zero, tmp_path / "none", rank=2)
    assert not (tmp_path / "none").exists()


def test_embeddings_convolutions_and_saved_modules(tmp_path: Path) -> None:
    tensors: Tensors = {
        "model.embed_tokens.lora_embedding_A": ("BF16", matrix(4, 50, seed=1)),
        "model.embed_tokens.lora_embedding_B": ("BF16", matrix(16, 4, seed=2)),
        "model.conv.lora_A.weight": ("F32", matrix(4, 6, 3, 3, seed=3)),
        "model.conv.lora_B.weight": ("F32", matrix(8, 4, 1, 1, seed=4)),
        "lm_head.weight": ("BF16", matrix(50, 16, seed=5)),
    }
    folder = write_adapter(
        tmp_path / "adapter",
        tensors,
        lora_alpha=4,
        target_modules=["embed_tokens", "conv"],
        modules_to_save=["lm_head"],
    )
    report = resize_folder(folder, tmp_path / "out", rank=2)
    stored = read_raw(tmp_path / "out" / "adapter_model.safetensors")
    shapes = {name.removeprefix("base_model.model."): value.shape for name, (_, value) in stored.items()}
    assert shapes == {
        "lm_head.weight": (50, 16),
        "model.conv.lora_A.weight": (2, 6, 3, 3),
        "model.conv.lora_B.weight": (8, 2, 1, 1),
        "model.embed_tokens.lora_embedding_A": (2, 50),
        "model.embed_tokens.lora_embedding_B": (16, 2),
    }
    before, after = updates(folder), updates(tmp_path / "out")
    for told in report.modules:
        rest = np.linalg.norm(before[told.module] - after[told.module]) / np.linalg.norm(before[told.module])
        assert told.relative_error == pytest.approx(rest, rel=1e-9)
    assert stored["base_model.model.lm_head.weight"][0] == "BF16"
    assert stored["base_model.model.model.embed_tokens.lora_embedding_A"][0] == "F32"  # the one that holds both kinds
    assert report.extras == ("base_model.model.lm_head.weight",)


@pytest.mark.parametrize(
    ("config", "code", "sentence"),
    [
        ({"init_lora_weights": "pissa"}, "unsupported", "pissa"),
        ({"kasa_config": {"x": 1}}, "unsupported", "KaSA|kasa"),
        ({"use_dora": True}, "unsupported", "DoRA"),
        ({"r": 7}, "rejected", "rank 8"),
    ],
)
def test_adapters_that_are_no_update_of_the_base(
    tmp_path: Path, config: dict[str, Any], code: str, sentence: str
) -> None:
    folder = write_adapter(tmp_path / "adapter", falling(Q, out=40, in_=30, r=8, seed=1), **{"r": 8, **config})
    with pytest.raises(RegistryError, match=sentence) as caught:
        resize_folder(folder, tmp_path / "out", rank=2)
    assert caught.value.code == code and not (tmp_path / "out").exists()


def test_damaged_values_and_options_are_refused(adapter: Path, tmp_path: Path) -> None:
    tensors = dict(falling(Q, out=40, in_=30, r=8, seed=1))
    values = tensors[f"{Q}.lora_A.weight"][1].copy()
    values[3, 4] = np.nan
    broken = write_adapter(tmp_path / "broken", {**tensors, f"{Q}.lora_A.weight": ("F32", values)}, r=8)
    with pytest.raises(RegistryError, match=r"q_proj\.lora_A\.weight"):
        resize_folder(broken, tmp_path / "out", rank=2)
    large = {name: (kind, 1e8 * value) for name, (kind, value) in tensors.items()}
    with pytest.raises(RegistryError, match="range of F16"):
        resize_folder(write_adapter(tmp_path / "large", large, r=8), tmp_path / "out", rank=2, dtype="float16")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(RegistryError, match="5 bytes are missing"):
        resize_folder(adapter, tmp_path / "out", rank=2)
    for options in ({}, {"rank": 0}, {"rank": 1, "keep_energy": 0.5}, {"keep_energy": 2.0}):
        with pytest.raises(RegistryError) as caught:
            resize_folder(adapter, tmp_path / "out", **options)
        assert caught.value.code == "invalid-request"
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_same_bytes_with_any_number_of_threads_and_any_hash_seed(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    for layer in range(4):
        tensors |= falling(f"model.layers.{layer}.self_attn.q_proj", out=300, in_=200, r=64, seed=layer, fall=0.97)
    adapter = write_adapter(tmp_path / "adapter", tensors, r=64, lora_alpha=64)
    script = (
        "import sys, msgspec; from lora_kernels.resizing import resize_folder;"
        "r = resize_folder(*sys.argv[1:3], keep_energy=0.8, threads=int(sys.argv[3])); print(msgspec.json.encode(r).decode())"
    )
    outputs = set()
    for number, (blas, workers, seed) in enumerate([("1", "1", "0"), ("2", "3", "1")]):
        out = tmp_path / f"out{number}"
        done = subprocess.run(
            [sys.executable, "-c", script, str(adapter), str(out), workers],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": blas, "PYTHONHASHSEED": seed},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}
        outputs.add(done.stdout + json.dumps(files))
    assert len(outputs) == 1
