"""Merging onto what NF4 leaves of a full-precision base: the base that a QLoRA adapter was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.folders import read_adapter, read_base
from lora_kernels.merging import MergePlan, merge_folder, plan_merge
from lora_kernels.quantized.absmax import compress
from tests.kernels.checkpoints import Tensors, exact, matrix, pair, read_model, write_adapter, write_base

bnb = pytest.importorskip("bitsandbytes.functional")

Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.0.mlp.up_proj"
LAYERS: Tensors = {
    "model.embed_tokens.weight": ("BF16", matrix(50, 96, seed=1)),
    f"{Q}.weight": ("BF16", matrix(96, 96, seed=2)),
    # More than a block of the merge, of rows that blocks of 64 straddle.
    f"{UP}.weight": ("F32", matrix(900, 97, seed=3)),
    "model.norm.weight": ("BF16", matrix(96, seed=4)),
    "lm_head.weight": ("BF16", matrix(50, 96, seed=5)),
}
ADAPTER = pair(Q, out=96, in_=96, r=4, seed=6)


def through(values: np.ndarray) -> np.ndarray:
    """The codes of bitsandbytes times absmax that went through double quantization."""
    packed, state = bnb.quantize_4bit(torch.from_numpy(values.reshape(1, -1)), quant_type="nf4", blocksize=64)
    found = state.absmax.numpy()
    state.absmax = torch.from_numpy(compress(found).of(0, found.size))
    return bnb.dequantize_4bit(packed, state).numpy().reshape(values.shape)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", [LAYERS])


def test_linear_layers_become_what_nf4_leaves_of_them(base: Path, tmp_path: Path) -> None:
    """All but the output layer, touched or not, as transformers quantizes a model when it is loaded for training."""
    adapter = write_adapter(tmp_path / "adapter", ADAPTER)
    merge_folder(base, [(adapter, 0.0)], tmp_path / "out", onto="nf4", dtype="float32")
    before, after = read_model(base), read_model(tmp_path / "out")
    for name in (f"{Q}.weight", f"{UP}.weight"):
        expected = through(exact(*before[name]).astype(np.float32))
        assert (after[name][1] == expected).all()
    for name in set(LAYERS) - {f"{Q}.weight", f"{UP}.weight"}:
        assert (exact(*after[name]) == exact(*before[name])).all()


def test_the_adapter_is_added_to_it_in_float32(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", ADAPTER)
    report = merge_folder(base, [(adapter, 1.0)], tmp_path / "out", onto="nf4", dtype="float32")
    name = f"{Q}.weight"
    a, b = (ADAPTER[f"{Q}.lora_{half}.weight"][1].astype(np.float32).astype(np.float64) for half in "AB")
    expected = through(exact(*read_model(base)[name]).astype(np.float32)).astype(np.float64) + 2 * b @ a
    bound = 2.0**-24 * (16 * np.abs(b) @ np.abs(a) + 2 * np.abs(expected))
    assert (np.abs(read_model(tmp_path / "out")[name][1] - expected) <= bound).all()
    assert report.kept == pytest.approx(1, abs=1e-5)


def test_double_quantization_loses_no_more_than_that_of_bitsandbytes(tmp_path: Path) -> None:
    values = matrix(512, 512, seed=7).astype(np.float32)
    packed, state = bnb.quantize_4bit(torch.from_numpy(values), quant_type="nf4", compress_statistics=True)
    theirs = np.linalg.norm(bnb.dequantize_4bit(packed, state).numpy() - values)
    ours = np.linalg.norm(through(values) - values)
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_codes_do_not_depend_on_how_rows_are_cut(base: Path, tmp_path: Path) -> None:
    """Rows of 97 elements, 900 of them, in blocks of 64: a merge works on some rows at a time."""
    adapter = write_adapter(tmp_path / "adapter", ADAPTER)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", dtype="nf4", min_kept=None)
    values = read_model(base)[f"{UP}.weight"][1].reshape(1, -1)
    packed, _ = bnb.quantize_4bit(torch.from_numpy(values.copy()), quant_type="nf4", blocksize=64)
    assert (read_model(tmp_path / "out")[f"{UP}.weight"][1] == packed.numpy()).all()


@pytest.mark.parametrize("options", [{"onto": "nf4"}, {"dtype": "nf4", "rounding": "stochastic", "seed": 3}])
def test_plans_print_as_json(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    inputs = [read_adapter(write_adapter(tmp_path / "adapter", ADAPTER))]
    made = plan_merge(read_base(base)[0], inputs, **options)
    assert msgspec.json.decode(msgspec.json.encode(made), type=MergePlan) == made


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    weight = matrix(96, 96, seed=2).astype(np.float32)
    weight[3, 4] = bad
    base = write_base(tmp_path / "base", [{**LAYERS, f"{Q}.weight": ("F32", weight)}])
    adapter = write_adapter(tmp_path / "adapter", ADAPTER)
    for options in ({"onto": "nf4"}, {"dtype": "nf4"}):
        with pytest.raises(RegistryError, match="NaN or infinite") as caught:
            merge_folder(base, [(adapter, 1.0)], tmp_path / "out", **options)
        assert caught.value.code == "rejected" and caught.value.facts["tensor"] == f"{Q}.weight"


def test_experts_and_turned_layers_are_refused(tmp_path: Path) -> None:
    experts = {**LAYERS, "model.layers.0.mlp.experts.0.up_proj.weight": ("BF16", matrix(8, 96, seed=8))}
    turned = {
        "h.0.attn.c_attn.weight": ("BF16", matrix(96, 288, seed=9)),
        "wte.weight": ("BF16", matrix(9, 96, seed=1)),
    }
    adapter = write_adapter(tmp_path / "adapter", ADAPTER)
    for number, (tensors, model_type, sentence) in enumerate(
        [(experts, "qwen3_moe", "holds experts"), (turned, "gpt2", r"stored \(in, out\)")]
    ):
        base = write_base(tmp_path / f"base{number}", [tensors], model_type=model_type)
        for options in ({"onto": "nf4"}, {"dtype": "nf4"}):
            with pytest.raises(RegistryError, match=sentence) as caught:
                merge_folder(base, [(adapter, 1.0)], tmp_path / "out", **options)
            assert caught.value.code == "unsupported"
