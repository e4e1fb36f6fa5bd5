"""Extraction between small checkpoints: what is found, what is told, what is refused."""

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
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.extracting import ExtractReport, extract, extract_folders
from lora_kernels.merging import FolderSource, RangeSource
from tests.kernels.checkpoints import exact, matrix, read_model, read_raw, write_base

LAYER = "model.layers.0"
Q, K, UP, NORM = (
    f"{LAYER}.{part}" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "input_layernorm")
)
Weights = dict[str, tuple[str, NDArray[Any]]]


def weights(dtype: str = "BF16") -> Weights:
    """A base with linear layers of three shapes, a bias, a norm, an embedding and an output layer."""
    return {
        "model.embed_tokens.weight": (dtype, matrix(40, 24, seed=1)),
        f"{Q}.weight": (dtype, matrix(32, 24, seed=2)),
        f"{Q}.bias": (dtype, matrix(32, seed=3)),
        f"{K}.weight": (dtype, matrix(8, 24, seed=4)),
        f"{UP}.weight": (dtype, matrix(64, 24, seed=5)),
        f"{NORM}.weight": (dtype, 1 + matrix(24, seed=6)),
        "lm_head.weight": (dtype, matrix(40, 24, seed=7)),
    }


def tune(
    before: Weights, *names: str, rank: int | None = None, size: float = 0.01, dtype: str | None = None
) -> Weights:
    """The weights with random changes in some tensors; rank: of the change, None for full."""
    after = dict(before)
    for number, name in enumerate(names):
        kept, values = before[name]
        random = np.random.default_rng(100 + number)
        shape = values.shape
        change = size * random.standard_normal(shape)
        if rank is not None:
            change = size * random.standard_normal((shape[0], rank)) @ random.standard_normal((rank, shape[1]))
        after[name] = (dtype or kept, values + change)
    return after


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", [weights()])


def tuned_with(folder: Path, after: Weights, **config: Any) -> Path:
    names = list(after)
    return write_base(folder, [{n: after[n] for n in names[:3]}, {n: after[n] for n in names[3:]}], **config)


def changes(base: Path, tuned: Path) -> dict[str, NDArray[np.float64]]:
    before = read_model(base)
    return {name: exact(*value) - exact(*before[name]) for name, value in read_model(tuned).items()}


def products(adapter: Path) -> dict[str, NDArray[np.float64]]:
    """B A by module, in float64; the config must say the scale 1."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] and config["rank_pattern"] == config["alpha_pattern"]
    assert not config["use_rslora"]
    stored = {name: exact(*value) for name, value in read_raw(adapter / "adapter_model.safetensors").items()}
    found = {}
    for name, a in stored.items():
        if "lora_A" in name or "lora_embedding_A" in name:
            b = stored[name.replace("_A", "_B")]
            module = name.removeprefix("base_model.model.").partition(".lora_")[0]
            found[module] = b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)
    return found


def by_module(report: ExtractReport) -> dict[str, Any]:
    return {module.module: module for module in report.modules}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_change_of_low_rank_comes_back(base: Path, tmp_path: Path, dtype: str) -> None:
    tuned = tuned_with(tmp_path / "tuned", tune(weights(), f"{Q}.weight", f"{UP}.weight", rank=3))
    report = extract_folders(tuned, base, tmp_path / "out", rank=4, dtype=dtype)
    change = changes(base, tuned)
    assert set(by_module(report)) == {Q, UP} and report.identical == 5 and not report.unheld
    for module, product in products(tmp_path / "out").items():
        difference = change[f"{module}.weight"]
        singular = np.linalg.svd(difference, compute_uv=False)
        told = by_module(report)[module]
        rest = float(np.linalg.norm(difference - product))
        # What is told is true of the file, rounded factors and all.
        assert told.residual_norm == pytest.approx(rest, rel=1e-9)
        assert told.change_norm == pytest.approx(float(np.linalg.norm(difference)), rel=1e-12)
        assert told.kept_energy == pytest.approx(1 - (rest / told.change_norm) ** 2, abs=1e-12)
        # The change was rounded with the weights, so it is not of rank 3 any more: the rest is what rank 4 leaves, and
        # the rounding of the factors, half a step of each of the two.
        step = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        assert rest <= float(np.sqrt(np.sum(singular[4:] ** 2))) + 3 * step * told.change_norm
        assert told.rank == 4 and told.exact
    stored = {kind for kind, _ in read_raw(tmp_path / "out" / "adapter_model.safetensors").values()}
    assert stored == {{"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]}


def test_kept_energy_is_reached_and_by_no_rank_too_many(base: Path, tmp_path: Path) -> None:
    tuned = tuned_with(tmp_path / "tuned", tune(weights(), f"{Q}.weight", f"{K}.weight", f"{UP}.weight"))
    report = extract_folders(tuned, base, tmp_path / "out", keep_energy=0.7)
    change = changes(base, tuned)
    for told in report.modules:
        held = np.cumsum(np.linalg.svd(change[told.tensor], compute_uv=False) ** 2)
        needed = int(np.flatnonzero(held >= 0.7 * held[-1])[0]) + 1
        assert told.rank == needed > 1
        assert held[needed - 2] < 0.7 * held[-1] <= told.kept_energy * held[-1] * (1 + 1e-6)
    assert len({told.rank for told in report.modules}) > 1
    assert set(products(tmp_path / "out")) == {Q, K, UP}
    limited = extract_folders(tuned, base, tmp_path / "limited", keep_energy=0.7, max_rank=2)
    assert {told.rank for told in limited.modules} == {2} and limited.kept_energy < 0.7


def test_rank_is_at_most_the_smaller_side(base: Path, tmp_path: Path) -> None:
    tuned = tuned_with(tmp_path / "tuned", tune(weights(), f"{Q}.weight", f"{K}.weight"))
    report = extract_folders(tuned, base, tmp_path / "out", rank=20)
    assert {told.module: told.rank for told in report.modules} == {Q: 20, K: 8}
    assert by_module(report)[K].kept_energy == pytest.approx(1, abs=1e-12)
    assert set(products(tmp_path / "out")) == {Q, K}


def test_what_has_no_factors_is_told_and_by_request_stored(base: Path, tmp_path: Path) -> None:
    names = (f"{Q}.weight", f"{Q}.bias", f"{NORM}.weight", "model.embed_tokens.weight")
    tuned = tuned_with(tmp_path / "tuned", tune(weights(), *names))
    report = extract_folders(tuned, base, tmp_path / "out", rank=2)
    change = changes(base, tuned)
    before = read_model(base)
    assert [told.tensor for told in report.dropped] == sorted(names[1:]) and report.unheld == report.dropped
    for told in report.unheld:
        norm = float(np.linalg.norm(change[told.tensor]))
        assert told.change_norm == pytest.approx(norm, rel=1e-12) and not told.saved
        assert told.relative_change == pytest.approx(norm / np.linalg.norm(exact(*before[told.tensor])), rel=1e-12)
    assert set(products(tmp_path / "out")) == {Q}

    saved = extract_folders(tuned, base, tmp_path / "saved", rank=2, save_changed=True)
    assert not saved.dropped and [told.tensor for told in saved.unheld] == sorted(names[1:])
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.embed_tokens", NORM] and config["bias"] == "lora_only"
    stored = read_raw(tmp_path / "saved" / "adapter_model.safetensors")
    after = read_model(tuned)
    for tensor, name in ((f"{Q}.bias", f"{Q}.base_layer.bias"), *((n, n) for n in names[2:])):
        np.testing.assert_array_equal(stored[f"base_model.model.{name}"][1], after[tensor][1])


def test_embeddings_have_factors_where_they_are_named(base: Path, tmp_path: Path) -> None:
    tuned = tuned_with(tmp_path / "tuned", tune(weights(), "model.embed_tokens.weight", f"{Q}.weight", rank=2))
    report = extract_folders(tuned, base, tmp_path / "out", rank=3, targets=["embed_tokens", "q_proj"])
    found = products(tmp_path / "out")
    change = changes(base, tuned)["model.embed_tokens.weight"]
    told = by_module(report)["model.embed_tokens"]
    assert np.linalg.norm(change - found["model.embed_tokens"].T) == pytest.approx(told.residual_norm, rel=1e-9)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"] == [
        "model.embed_tokens",
        Q,
    ]


def test_transposed_layers_and_convolutions(tmp_path: Path) -> None:
    before: Weights = {
        "h.0.attn.c_attn.weight": ("F32", matrix(24, 72, seed=1)),
        "h.0.conv.weight": ("F32", matrix(6, 5, 3, 3, seed=2)),
    }
    base = write_base(tmp_path / "base", [before], model_type="gpt2", architectures=["GPT2LMHeadModel"])
    after = tune(before, *before)
    tuned = write_base(tmp_path / "tuned", [after], model_type="gpt2", architectures=["GPT2LMHeadModel"])
    report = extract_folders(tuned, base, tmp_path / "out", rank=6, targets=["c_attn", "conv"])
    change = changes(base, tuned)
    found = products(tmp_path / "out")
    # The oldest checkpoints of this type lack the prefix that the module has in memory.
    told = by_module(report)
    rest = np.linalg.norm(change["h.0.attn.c_attn.weight"] - found["transformer.h.0.attn.c_attn"].T)
    assert rest == pytest.approx(told["transformer.h.0.attn.c_attn"].residual_norm, rel=1e-9)
    assert np.linalg.norm(change["h.0.conv.weight"].reshape(6, 45) - found["transformer.h.0.conv"]) == pytest.approx(
        told["transformer.h.0.conv"].residual_norm, abs=1e-7
    )
    stored = {
        name: value.shape for name, (_, value) in read_raw(tmp_path / "out" / "adapter_model.safetensors").items()
    }
    assert stored["base_model.model.transformer.h.0.conv.lora_A.weight"] == (6, 5, 3, 3)
    assert stored["base_model.model.transformer.h.0.conv.lora_B.weight"] == (6, 6, 1, 1)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["fan_in_fan_out"] is True


@pytest.mark.parametrize("kinds", [("BF16", "F32"), ("F16", "BF16"), ("F32", "F32"), ("F32", "F16")])
def test_types_of_both_sides_may_differ(tmp_path: Path, kinds: tuple[str, str]) -> None:
    base = write_base(tmp_path / "base", [weights(kinds[0])])
    after = {name: (kinds[1], values) for name, (_, values) in tune(weights(), f"{Q}.weight").items()}
    tuned = tuned_with(tmp_path / "tuned", after)
    report = extract_folders(tuned, base, tmp_path / "out", rank=24, targets=["q_proj"])
    np.testing.assert_allclose(products(tmp_path / "out")[Q], changes(base, tuned)[f"{Q}.weight"], atol=1e-6)
    # Another rounding of the same weights is a change too, and is told.
    assert (len(report.unheld) > 0) == (kinds[0] != kinds[1])


def test_tied_weights_get_no_factors(tmp_path: Path) -> None:
    before = weights()
    del before["lm_head.weight"]
    base = write_base(tmp_path / "base", [before], tie_word_embeddings=True)
    tuned = tuned_with(
        tmp_path / "tuned", tune(before, f"{Q}.weight", "model.embed_tokens.weight"), tie_word_embeddings=True
    )
    report = extract_folders(tuned, base, tmp_path / "out", rank=2, save_changed=True)
    assert [(told.tensor, told.saved) for told in report.unheld] == [("model.embed_tokens.weight", False)]
    assert "shared" in report.unheld[0].reason
    for target in ("embed_tokens", "lm_head"):
        with pytest.raises(RegistryError, match="shares its weight"):
            extract_folders(tuned, base, tmp_path / "other", rank=2, targets=[target])


def test_refusals_name_the_tensor(base: Path, tmp_path: Path) -> None:
    def refused(after: Weights, **options: Any) -> RegistryError:
        number = len(list(tmp_path.iterdir()))
        tuned = tuned_with(tmp_path / f"tuned-{number}", after)
        with pytest.raises(RegistryError) as caught:
            extract_folders(tuned, base, tmp_path / "out", **{"rank": 2, **options})
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
        return caught.value

    whole = tune(weights(), f"{Q}.weight")
    lacking = {name: value for name, value in whole.items() if name != "lm_head.weight"}
    assert "fine-tune has no tensor lm_head.weight" in refused(lacking).detail
    more = {**whole, "model.extra.weight": ("BF16", matrix(3, 3, seed=1))}
    assert "base has no tensor model.extra.weight" in refused(more).detail
    larger = {**whole, "lm_head.weight": ("BF16", matrix(42, 24, seed=1))}
    assert "lm_head.weight is 42 x 24" in (error := refused(larger)).detail and "vocabulary" in error.detail
    quantized = {**whole, f"{UP}.weight": ("I8", np.zeros((64, 24), np.int8))}
    assert (error := refused(quantized)).code == "unsupported" and f"{UP}.weight" in error.detail
    for bad in (np.nan, np.inf):
        values = matrix(32, 24, seed=2)
        values[31, 5] = bad
        broken = {**whole, f"{Q}.weight": ("BF16", values)}
        assert f"{Q}.weight holds NaN or infinite values in the fine-tune" in refused(broken).detail
    assert "no tensor differs" in refused(weights()).detail
    assert NORM in refused(tune(weights(), f"{NORM}.weight")).detail
    assert "matches no module" in refused(whole, targets=["q_proj", "nowhere"]).detail
    assert "kind norm" in refused(whole, targets=["input_layernorm"]).detail


@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 0}, {"rank": 2, "keep_energy": 0.5}, {"keep_energy": 0.0}, {"keep_energy": 1.1}, {"rank": 2, "max_rank": 3},
     {"keep_energy": float("nan")}, {"rank": 2, "dtype": "int8"}],
)  # fmt: skip
def test_options_that_do_not_fit(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RegistryError) as caught:
        extract_folders(base, base, tmp_path / "out", **options)
    assert caught.value.code == "invalid-request" and not (tmp_path / "out").exists()


def test_file_cut_short_while_it_is_read(base: Path, tmp_path: Path) -> None:
    tuned = tuned_with(tmp_path / "tuned", tune(weights(), f"{Q}.weight"))
    before, after = read_base(base)[0], read_base(tuned)[0]
    shard = after.by_name()["lm_head.weight"].file
    os.truncate(tuned / shard, (tuned / shard).stat().st_size - 7)
    with (
        FolderSource(base) as base_source,
        FolderSource(tuned) as source,
        pytest.raises(RegistryError, match=shard) as caught,
    ):
        extract(after, source, before, base_source, tmp_path / "out", rank=2)
    assert caught.value.code == "corrupt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]
    with pytest.raises(RegistryError, match="bytes are missing"):
        extract_folders(tuned, base, tmp_path / "out", rank=2)


def test_nothing_is_overwritten(base: Path, tmp_path: Path) -> None:
    tuned = tuned_with(tmp_path / "tuned", tune(weights(), f"{Q}.weight"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(RegistryError) as caught:
        extract_folders(tuned, base, tmp_path / "out", rank=2)
    assert caught.value.code == "exists" and [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_progress_and_ranges_of_a_store(base: Path, tmp_path: Path) -> None:
    tuned = tuned_with(tmp_path / "tuned", tune(weights(), f"{Q}.weight", f"{UP}.weight"))
    extract_folders(tuned, base, tmp_path / "folders", rank=2)
    seen: list[tuple[int, int]] = []

    def source(folder: Path, window: int) -> RangeSource:
        def read(path: str, offset: int, length: int) -> bytes:
            return (folder / path).read_bytes()[offset : offset + length]

        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        return RangeSource(read, sizes=sizes, window=window)

    report = extract(
        read_base(tuned)[0], source(tuned, 100), read_base(base)[0], source(base, 4096), tmp_path / "ranges", rank=2,
        threads=1, progress=lambda *at: seen.append(at),
    )  # fmt: skip
    total = sum(value.nbytes for _, value in read_model(base).values())
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    for file in report.files:
        data = (tmp_path / "ranges" / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
        assert data == (tmp_path / "folders" / file.path).read_bytes()
    assert sorted(path.name for path in (tmp_path / "ranges").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_same_bytes_with_any_number_of_threads_and_any_hash_seed(tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)]
    before: Weights = {name: ("BF16", matrix(600, 550, seed=number)) for number, name in enumerate(names)}
    base = write_base(tmp_path / "base", [before])
    tuned = write_base(tmp_path / "tuned", [tune(before, *names)])
    script = (
        "import sys, msgspec; from lora_kernels.extracting import extract_folders;"
        "r = extract_folders(*sys.argv[1:4], rank=6, threads=int(sys.argv[4])); print(msgspec.json.encode(r).decode())"
    )
    outputs = set()
    for number, (blas, workers, seed) in enumerate([("1", "1", "0"), ("2", "3", "1")]):
        out = tmp_path / f"out{number}"
        done = subprocess.run(
            [sys.executable, "-c", script, str(tuned), str(base), str(out), workers],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": blas, "PYTHONHASHSEED": seed},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}
        outputs.add(done.stdout + json.dumps(files))
    assert len(outputs) == 1 and '"exact":false' in outputs.pop()


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    script = "import sys, lora_kernels.extracting, lora_kernels.resizing; print('numpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False"]
