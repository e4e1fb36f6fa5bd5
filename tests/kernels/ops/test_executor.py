"""Merges and compositions on a device, with the kernels. Merged files are those of the CPU's executor, byte for byte.

The factors are such that sums are exact in float32: in any order, on any processor, they are the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_kernels.composing import compose_folders
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import pair, write_adapter
from tests.kernels.composing.peft_models import products
from tests.kernels.merging.device_models import exact_adapter, exact_base


@pytest.mark.parametrize(
    ("options", "rows"), [({}, 70), ({"dtype": "float32"}, 0), ({"onto": "nf4"}, 0), ({"dtype": "nf4"}, 0)], ids=str
)
def test_same_files_as_on_the_cpu(device: torch.device, tmp_path: Path, options: dict[str, Any], rows: int) -> None:
    base, adapter = exact_base(tmp_path / "base", rows=rows), exact_adapter(tmp_path / "adapter", rows=rows)
    files, kept = [], []
    for name, chosen in (("cpu", "cpu"), ("device", Accelerator(device.type, "triton"))):
        out = tmp_path / name
        report = merge_folder(base, [(adapter, 0.5)], out, device=chosen, min_kept=None, **options)  # type: ignore[arg-type]
        files.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())})
        kept.append(report.kept)
    assert files[0] == files[1]
    assert kept[0] == pytest.approx(kept[1], rel=1e-5)
    assert report.execution.backend == "triton"


@pytest.mark.parametrize("method", ["ties_svd", "dare_linear_svd", "dare_ties_svd"])
def test_same_compositions_as_on_the_cpu(device: torch.device, tmp_path: Path, method: str) -> None:
    module = "model.layers.0.self_attn.q_proj"
    adapters = [
        (write_adapter(tmp_path / str(seed), pair(module, out=40, in_=24, r=4, seed=seed)), weight)
        for seed, weight in enumerate((1.0, 0.5, -0.3))
    ]
    compose_folders(adapters, tmp_path / "cpu", method=method, seed=3)
    chosen = Accelerator(device.type, "triton")
    report = compose_folders(adapters, tmp_path / "device", method=method, seed=3, device=chosen)
    expected, found = products(tmp_path / "cpu")[module], products(tmp_path / "device")[module]
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    assert report.execution.backend == "triton"
