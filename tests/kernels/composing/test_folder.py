"""Composing folders: what comes out, what is refused, and that the bytes are always the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_contract.methods import METHODS
from lora_kernels.adapters import open_adapter
from lora_kernels.composing import compose_folders
from tests.kernels.checkpoints import matrix, pair, read_raw, write_adapter
from tests.kernels.composing.oracle import UNIT
from tests.kernels.composing.peft_models import factors, peft_factors, peft_model, products
from tests.support.adapters import BASE_ID, check_files, fingerprint_of, make_adapter, make_base, read_folder

Q, K, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qkv")


@pytest.fixture
def two(tmp_path: Path) -> list[tuple[Path, float]]:
    base = make_base(tmp_path / "base")
    return [
        (make_adapter(tmp_path / "0", base, rank=4, alpha=8, seed=1), 0.6),
        (make_adapter(tmp_path / "1", base, rank=6, alpha=3, seed=2, targets=("q_proj", "down_proj")), -1.5),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_an_adapter_that_the_registry_takes_and_peft_loads(
    two: list[tuple[Path, float]], tmp_path: Path, method: str
) -> None:
    report = compose_folders(two, tmp_path / "out", method=method, seed=3)
    base = tmp_path / "base"
    assert check_files(read_folder(tmp_path / "out"), fingerprint_of(base)).findings == []
    ours = factors(tmp_path / "out")
    ranks = {module.module: module.rank for module in report.modules if module.rank}
    assert ranks == {module: a.shape[0] for module, (_, a) in ours.items()}
    assert (report.method, report.version, report.rank) == (method, 1, max(a.shape[0] for _, a in ours.values()))
    assert report.seed == (3 if METHODS[method].seeded else None)
    assert set(report.parameters) == {parameter.name for parameter in METHODS[method].parameters}
    for module, (b, a) in peft_factors(peft_model(base, [tmp_path / "out"]), "a0").items():
        np.testing.assert_array_equal(a, ours[module][1])
        np.testing.assert_array_equal(b, ours[module][0])
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == (BASE_ID, "CAUSAL_LM")


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_sums_have_the_scales_of_rslora_and_patterns(tmp_path: Path, method: str) -> None:
    """PEFT's result would inherit use_rslora and be sqrt(r) too strong (huggingface/peft#3761)."""
    root = write_adapter(tmp_path / "a", pair(Q, out=24, in_=20, r=4, seed=1), use_rslora=True, lora_alpha=8)
    other = write_adapter(tmp_path / "b", pair(Q, out=24, in_=20, r=2, seed=2), alpha_pattern={"q_proj": 5}, r=2)
    compose_folders(
        [(root, 0.5), (other, 2.0)], tmp_path / "out", method=method, parameters={"rank": 9} if method == "svd" else {}
    )
    wanted = 0.5 * 4 * products(root)[Q] / 4 + 2 * products(other)[Q]
    assert np.linalg.norm(wanted) > 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["use_rslora"] is False and config["lora_alpha"] == config["r"] == 6
    # The coefficient, the product with it and the rounding of both factors.
    assert np.linalg.norm(products(tmp_path / "out")[Q] - wanted) <= 4 * UNIT * sum(
        np.linalg.norm(np.abs(b) @ np.abs(a)) * w
        for w, path in ((0.5, root), (2.0, other))
        for b, a in [factors(path)[Q]]
    )


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "magnitude_prune"])
def test_smaller_ranks_are_padded_after_trimming(tmp_path: Path, method: str) -> None:
    """PEFT refuses different ranks. What the smaller adapter adds is what it adds alone."""
    one = write_adapter(tmp_path / "a", pair(Q, out=12, in_=10, r=2, seed=1), r=2, lora_alpha=4)
    other = write_adapter(tmp_path / "b", pair(Q, out=12, in_=10, r=5, seed=2), r=5, lora_alpha=5)
    compose_folders([(one, 1.0), (other, 0.0)], tmp_path / "out", method=method)
    compose_folders([(one, 1.0)], tmp_path / "alone", method=method)
    (b, a), (b_alone, a_alone) = factors(tmp_path / "out")[Q], factors(tmp_path / "alone")[Q]
    assert a.shape == (5, 10) and not a[2:].any() and not b[:, 2:].any()
    if method != "ties":  # there the other one votes
        np.testing.assert_array_equal(a[:2], a_alone)
        np.testing.assert_array_equal(b[:, :2], b_alone)


def test_embeddings_and_convolutions_keep_their_shapes(tmp_path: Path) -> None:
    folders = []
    for seed in (1, 2):
        tensors = {
            "model.embed_tokens.lora_embedding_A": ("F32", matrix(4, 30, seed=seed)),
            "model.embed_tokens.lora_embedding_B": ("F32", matrix(8, 4, seed=seed + 2)),
            "model.conv.lora_A.weight": ("F32", matrix(4, 6, 3, 3, seed=seed + 4)),
            "model.conv.lora_B.weight": ("F32", matrix(10, 4, 1, 1, seed=seed + 6)),
            "model.embed_tokens.base_layer.weight": ("F32", matrix(30, 8, seed=9)),
        }
        folders.append(write_adapter(tmp_path / str(seed), tensors))
    report = compose_folders([(path, 0.5) for path in folders], tmp_path / "out", parameters={"rank": 6})
    stored = read_raw(tmp_path / "out" / "adapter_model.safetensors")
    shapes = {name.removeprefix("base_model.model.model."): values.shape for name, (_, values) in stored.items()}
    assert shapes == {
        "embed_tokens.lora_embedding_A": (6, 30),
        "embed_tokens.lora_embedding_B": (8, 6),
        "conv.lora_A.weight": (6, 6, 3, 3),
        "conv.lora_B.weight": (10, 6, 1, 1),
    }
    assert report.ignored == tuple(f"{i}:base_model.model.model.embed_tokens.base_layer.weight" for i in (0, 1))


def test_dtype_is_the_widest_of_the_inputs_or_as_asked(tmp_path: Path) -> None:
    half = write_adapter(tmp_path / "a", pair(Q, out=8, in_=8, r=4, seed=1, dtype="BF16"))
    whole = write_adapter(tmp_path / "b", pair(Q, out=8, in_=8, r=4, seed=2))
    for name, inputs, dtype, stored in [
        ("0", [half, half], None, "BF16"),
        ("1", [half, whole], None, "F32"),
        ("2", [half, whole], "float16", "F16"),
    ]:
        compose_folders([(path, 1.0) for path in inputs], tmp_path / f"out{name}", dtype=dtype)
        assert {kind for kind, _ in read_raw(tmp_path / f"out{name}" / "adapter_model.safetensors").values()} == {
            stored
        }


def test_clamp_cuts_off_at_the_quantile(two: list[tuple[Path, float]], tmp_path: Path) -> None:
    compose_folders(two, tmp_path / "whole")
    compose_folders(two, tmp_path / "out", parameters={"clamp": 0.9})
    whole, cut = factors(tmp_path / "whole"), factors(tmp_path / "out")
    for module, (b, a) in whole.items():
        signs = np.sign(a[np.arange(len(a)), np.abs(a).argmax(axis=1)])
        limit = np.quantile(np.concatenate([(b * signs).ravel(), (signs[:, None] * a).ravel()]), 0.9)
        # Both ways round once to float32.
        np.testing.assert_allclose(cut[module][0], (b * signs).clip(-limit, limit), rtol=0, atol=4 * UNIT)
        np.testing.assert_allclose(cut[module][1], (signs[:, None] * a).clip(-limit, limit), rtol=0, atol=4 * UNIT)


def test_dropping_keeps_the_density_and_draws_for_each_adapter_module_and_half(tmp_path: Path) -> None:
    tensors = {**pair(Q, out=300, in_=300, r=8, seed=1), **pair(K, out=300, in_=300, r=8, seed=1)}
    folder = write_adapter(tmp_path / "a", tensors, r=8, lora_alpha=8)
    masks = {}
    for place, inputs in enumerate(([(folder, 1.0), (folder, 0.0)], [(folder, 0.0), (folder, 1.0)])):
        out = tmp_path / f"out{place}"
        compose_folders(inputs, out, method="dare_linear", parameters={"density": 0.3}, seed=4)
        original = factors(folder)
        for module, halves in factors(out).items():
            for half, found, before in zip("BA", halves, original[module], strict=True):
                mask = found != 0
                # A quotient by float32(0.3), rounded once more.
                np.testing.assert_allclose(found[mask], before[mask] / 0.3, rtol=3 * UNIT, atol=0)
                masks[place, module, half] = mask.ravel()
    count = 2400
    for mask in masks.values():
        assert mask.size == count and abs(mask.mean() - 0.3) <= 6 * np.sqrt(0.3 * 0.7 / count)
    for (one, mask), (other, second) in combinations(masks.items(), 2):
        assert abs((mask & second).mean() - 0.09) <= 6 * np.sqrt(0.09 * 0.91 / count), (one, other)


RUN = """
import json, sys
from lora_kernels.composing import compose_folders
folders, out, threads = json.loads(sys.argv[1])
for method in ("svd", "ties", "dare_ties", "dare_ties_svd", "della", "sce", "knots", "task_arithmetic"):
    compose_folders([(path, 0.5) for path in folders], f"{out}-{method}", method=method, seed=9, threads=threads)
"""


def test_bytes_do_not_depend_on_threads_and_hash_seeds(two: list[tuple[Path, float]], tmp_path: Path) -> None:
    written = []
    for hash_seed, threads in (("1", 1), ("2", 2)):
        folder = tmp_path / f"run-{threads}"
        folder.mkdir()
        argument = json.dumps([[str(path) for path, _ in two], str(folder / "out"), threads])
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        subprocess.run([sys.executable, "-c", RUN, argument], check=True, env=environment)
        written.append(read_folder(folder))
    assert len(written[0]) == 16 and written[0] == written[1]


def test_another_seed_draws_other_numbers(two: list[tuple[Path, float]], tmp_path: Path) -> None:
    files = [
        compose_folders(two, tmp_path / f"out{seed}", method="dare_linear", seed=seed).files[1].sha256
        for seed in (0, 1)
    ]
    assert files[0] != files[1]


@pytest.mark.parametrize(
    ("config", "extra", "message"),
    [
        ({"use_dora": True}, {}, "DoRA"),
        ({"peft_type": "IA3"}, {}, "IA3"),
        (
            {"modules_to_save": ["lm_head"]},
            {"lm_head.weight": ("F32", matrix(9, 8, seed=1))},
            r"modules_to_save.*lm_head",
        ),
        ({"bias": "all"}, {f"{Q}.base_layer.bias": ("F32", matrix(8, seed=1))}, r"trains biases.*q_proj"),
    ],
)
def test_what_cannot_be_weighted_is_refused_by_name(tmp_path: Path, config: dict, extra: dict, message: str) -> None:
    plain = write_adapter(tmp_path / "a", pair(Q, out=8, in_=8, r=4, seed=1))
    other = write_adapter(tmp_path / "b", {**pair(Q, out=8, in_=8, r=4, seed=2), **extra}, **config)
    with pytest.raises(RegistryError, match=message) as caught:
        compose_folders([(plain, 1.0), (other, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported" and not (tmp_path / "out").exists()


def test_inputs_of_different_bases_are_refused(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "a", pair(Q, out=8, in_=8, r=4, seed=1))
    other = write_adapter(tmp_path / "b", pair(Q, out=8, in_=9, r=4, seed=1))
    with pytest.raises(
        RegistryError, match=r"q_proj is linear 8 x \(8,\) in adapter 0 .* \(9,\) in adapter 1"
    ) as caught:
        compose_folders([(one, 1.0), (other, 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected"


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e39])
def test_weights_are_finite_numbers(tmp_path: Path, weight: float) -> None:
    one = write_adapter(tmp_path / "a", pair(Q, out=8, in_=8, r=4, seed=1))
    with pytest.raises(RegistryError, match="not a finite number") as caught:
        compose_folders([(one, weight)], tmp_path / "out")
    assert caught.value.code == "invalid-request"
    with pytest.raises(RegistryError, match="at least one adapter"):
        compose_folders([], tmp_path / "out")


@pytest.mark.parametrize("method", METHODS)
def test_overflow_is_refused_and_leaves_nothing(tmp_path: Path, method: str) -> None:
    one = write_adapter(tmp_path / "a", pair(Q, out=8, in_=8, r=4, seed=1, size=1e19))
    inputs = [(one, 3e38), (one, 3e38)]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RegistryError) as caught:
        compose_folders(inputs, tmp_path / "out", method=method, dtype="float16")
    assert caught.value.code == "rejected" and sorted(tmp_path.iterdir()) == before


def test_empty_factors_are_left_out_and_told(tmp_path: Path) -> None:
    empty = {f"{K}.lora_A.weight": ("F32", np.empty((0, 8))), f"{K}.lora_B.weight": ("F32", np.empty((8, 0)))}
    one = write_adapter(tmp_path / "a", {**pair(Q, out=8, in_=8, r=4, seed=1), **empty})
    report = compose_folders([(one, 1.0)], tmp_path / "out")
    assert [(module.module, module.rank) for module in report.modules] == [(K, 0), (Q, 4)]
    with open_adapter(tmp_path / "out") as reader:
        assert reader.modules == (Q,)


def test_progress_counts_modules(two: list[tuple[Path, float]], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = compose_folders(two, tmp_path / "out", threads=2, progress=lambda *told: seen.append(told))
    assert seen == [(done + 1, len(report.modules)) for done in range(len(report.modules))]
