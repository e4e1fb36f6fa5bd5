"""Dense methods on a device: the updates of the CPU, to rounding. Here the device is the CPU's memory, and the
operations are their reference implementations in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_contract.errors import RegistryError
from lora_kernels.adapters.low_rank import ModuleShape
from lora_kernels.composing import compose_folders
from lora_kernels.composing.cost import choose_device, estimate
from lora_kernels.composing.dense import DENSE
from lora_kernels.composing.module import ComposeSettings
from lora_kernels.devices.accelerator import Accelerator
from tests.kernels.checkpoints import pair, write_adapter
from tests.kernels.composing.peft_models import products

DEVICE = Accelerator("cpu", "torch")
Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, float]]:
    """Of a tall module, whose side takes the Krylov method, and a wide one."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        (
            write_adapter(
                folder / str(seed),
                {**pair(Q, out=640, in_=540, r=4, seed=seed), **pair(K, out=60, in_=200, r=4, seed=9 + seed)},
            ),
            weight,
        )
        for seed, weight in enumerate((1.0, 0.5, -0.3))
    ]


@pytest.mark.parametrize("method", DENSE)
def test_same_updates_as_on_the_cpu(adapters: list[tuple[Path, float]], tmp_path: Path, method: str) -> None:
    one = compose_folders(adapters, tmp_path / "cpu", method=method, seed=3)
    other = compose_folders(adapters, tmp_path / "device", method=method, seed=3, device=DEVICE)
    expected, found = products(tmp_path / "cpu"), products(tmp_path / "device")
    for module in (Q, K):
        assert np.linalg.norm(found[module] - expected[module]) <= 1e-5 * np.linalg.norm(expected[module])
    assert other.kept == pytest.approx(one.kept, rel=1e-6)
    assert (one.execution.backend, other.execution.backend) == ("numpy", "torch")
    assert [module.rank for module in one.modules] == [module.rank for module in other.modules]


def test_what_exceeds_float32_is_refused_in_the_words_of_the_cpu(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "large", pair(Q, out=20, in_=12, r=4, seed=1, size=1e15))
    said = []
    for device in ("cpu", DEVICE):
        with pytest.raises(RegistryError) as caught:
            compose_folders([(adapter, 1e30)], tmp_path / "out", method="ties_svd", device=device)  # type: ignore[arg-type]
        said.append((caught.value.code, caught.value.detail))
    assert said[0] == said[1]


def shapes(side: int, count: int, modules: int) -> list[list[ModuleShape]]:
    return [[ModuleShape("m", "linear", 16, (side,), side, "BF16")] * count for _ in range(modules)]


def test_methods_on_factors_stay_on_the_cpu() -> None:
    settings = ComposeSettings({}, 0, 16)
    with pytest.raises(RegistryError, match="svd computes on factors alone") as caught:
        choose_device("svd", shapes(64, 2, 1), settings, "cuda", 1)
    assert caught.value.code == "unsupported" and "--device auto" in (caught.value.hint or "")
    assert choose_device("svd", shapes(64, 2, 1), settings, "auto", 1).device == "cpu"


def test_the_prediction_follows_size_adapters_and_rank() -> None:
    small, large = estimate("ties_svd", shapes(64, 4, 2), 16, 2), estimate("ties_svd", shapes(4096, 4, 224), 16, 2)
    assert small.cuda is not None and small.cuda > small.cpu
    assert large.cuda is not None and large.cuda < large.cpu / 5
    assert estimate("ties_svd", shapes(4096, 8, 224), 16, 2).cpu > large.cpu
    assert estimate("ties_svd", shapes(4096, 4, 224), 64, 2).cpu > large.cpu
    assert large.what == "ties_svd of 224 modules, 3.76 billion elements, rank 16"
