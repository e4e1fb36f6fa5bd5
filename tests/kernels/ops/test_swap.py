"""Swaps by the kernels: the launch over all layers writes what the merge of files writes, to the bit.

The factors are random, so that another order of sums, or another kernel, would show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kernels.ops.merge_low_rank import any_layout, forms
from lora_kernels.swap import Keep, ResidentModel
from tests.kernels.checkpoints import Tensors, matrix, pair, write_adapter, write_base
from tests.kernels.swap.models import Weights, differing, merged, weights_of

Q, K, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
# Whole blocks; a rest of rows; columns that are not aligned.
SHAPES = {Q: (32, 64), K: (24, 64), V: (16, 33)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors: Tensors = {
        f"{module}.weight": ("BF16", matrix(*shape, seed=seed)) for seed, (module, shape) in enumerate(SHAPES.items())
    }
    return write_base(tmp_path / "base", [tensors], dtype="bfloat16")


def adapter(folder: Path, *, seed: int, r: int = 4, dtype: str = "BF16") -> Path:
    tensors: dict[str, Any] = {}
    for module, (out, in_) in SHAPES.items():
        tensors |= pair(module, out=out, in_=in_, r=r, seed=seed, dtype=dtype)
    return write_adapter(folder, tensors, r=r)


def on(device: torch.device, weights: Weights) -> Weights:
    return {name: value.to(device) for name, value in weights.items()}


@pytest.mark.parametrize("keep", ["host", "device"])
def test_same_bits_as_a_merge_of_files(device: torch.device, base: Path, tmp_path: Path, keep: Keep) -> None:
    folders = {
        "lora": adapter(tmp_path / "lora", seed=1),
        "float32": adapter(tmp_path / "f", seed=3, r=20, dtype="F32"),
    }
    fresh = {
        name: merged(base, [(folder, 1.0)], tmp_path / f"{name} out", "triton") for name, folder in folders.items()
    }
    weights = on(device, weights_of(base))
    with ResidentModel(base, weights, keep=keep, backend="triton") as model:
        prepared = {name: model.prepare([folder], min_kept=None) for name, folder in folders.items()}
        assert [len(prepared[name].updates) for name in folders] == [3, 3]
        for name in ("lora", "float32", "lora"):
            assert model.swap(prepared[name]).backend == "triton"
            assert differing(on(torch.device("cpu"), weights), fresh[name]) == [], name
        model.restore()
    assert differing(on(torch.device("cpu"), weights), weights_of(base)) == []


def test_one_launch_for_matrices_of_a_form(
    device: torch.device, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[int] = []
    for module in (forms, any_layout):
        launch = module.launch
        monkeypatch.setattr(
            module,
            "launch",
            lambda items, *rest, _of=launch, **named: (launched.append(len(items)), _of(items, *rest, **named))[1],
        )
    weights = on(device, weights_of(base))
    with ResidentModel(base, weights, backend="triton") as model:
        prepared = model.prepare([adapter(tmp_path / "lora", seed=1)], min_kept=None)
        launched.clear()
        model.swap(prepared)
    # Q; K, which has a rest of rows; V, which is not aligned.
    assert sorted(launched) == [1, 1, 1]


def test_a_parameter_that_is_not_aligned_is_copied(device: torch.device, base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", seed=1)
    fresh = merged(base, [(folder, 1.0)], tmp_path / "out", "triton")
    weights = on(device, weights_of(base))
    values = weights[f"{Q}.weight"]
    memory = torch.empty(values.numel() + 1, dtype=values.dtype, device=device)
    weights[f"{Q}.weight"] = memory[1:].view(values.shape).copy_(values)
    with ResidentModel(base, weights, backend="triton") as model:
        prepared = model.prepare([folder], min_kept=None)
        assert f"{Q}.weight" in [result.parameter.name for result in prepared.results]
        model.swap(prepared)
    assert differing(on(torch.device("cpu"), weights), fresh) == []
