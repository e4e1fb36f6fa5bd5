"""Extraction on a device: the same factors to rounding. Here the device is the CPU's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_contract.base import BaseTensor
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.extracting import extract_folders
from lora_kernels.extracting.cost import estimate
from tests.kernels.checkpoints import Tensors, matrix, write_base
from tests.kernels.composing.peft_models import products

DEVICE = Accelerator("cpu", "torch")
Q, K, N = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.norm"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fine-tune and its base: a tall target and a wide one that changed, and a norm."""
    folder = tmp_path_factory.mktemp("checkpoints")
    before: Tensors = {
        f"{Q}.weight": ("BF16", matrix(640, 560, seed=1)),
        f"{K}.weight": ("F32", matrix(60, 200, seed=2)),
        f"{N}.weight": ("BF16", 1 + matrix(60, seed=3)),
    }
    after: Tensors = {
        name: (dtype, values + matrix(*values.shape, seed=9, size=0.01)) for name, (dtype, values) in before.items()
    }
    return write_base(folder / "tuned", [after]), write_base(folder / "base", [before])


@pytest.mark.parametrize("options", [{"rank": 8}, {"keep_energy": 0.3}, {"rank": 300}], ids=str)
def test_same_factors_as_on_the_cpu(checkpoints: tuple[Path, Path], tmp_path: Path, options: dict[str, Any]) -> None:
    one = extract_folders(*checkpoints, tmp_path / "cpu", **options)
    other = extract_folders(*checkpoints, tmp_path / "device", device=DEVICE, **options)
    expected, found = products(tmp_path / "cpu"), products(tmp_path / "device")
    for module, values in expected.items():
        assert np.linalg.norm(found[module] - values) <= 1e-5 * np.linalg.norm(values)
    assert other.kept_energy == pytest.approx(one.kept_energy, rel=1e-9)
    assert [module.rank for module in one.modules] == [module.rank for module in other.modules]
    assert [change.tensor for change in one.unheld] == [change.tensor for change in other.unheld]
    assert (one.execution.backend, other.execution.backend) == ("numpy", "torch")


def test_the_prediction_follows_size_and_rank() -> None:
    def of(side: int, count: int, rank: int) -> tuple[float, float]:
        tensors = [
            BaseTensor(name=f"{i}", dtype="BF16", shape=(side, side), file="f", start=0, end=2 * side * side)
            for i in range(count)
        ]
        found = estimate(tensors, tensors, rank, 2)
        assert found.cuda is not None
        return found.cpu, found.cuda

    small, large, wide = of(64, 2, 16), of(4096, 224, 16), of(4096, 224, 64)
    assert small[1] > small[0]
    assert large[1] < large[0] / 3
    assert wide[0] > large[0]
