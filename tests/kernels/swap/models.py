"""Models in memory as tensors by name, and what fresh merges give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.merging import merge_folder

Weights = dict[str, torch.Tensor]


def weights_of(folder: Path, dtype: torch.dtype | None = None) -> Weights:
    """The tensors of a model folder, in memory of their own."""
    files = sorted(folder.glob("*.safetensors"))
    return {
        name: value.to(dtype or value.dtype, copy=True) for file in files for name, value in load_file(file).items()
    }


def merged(
    base: Path, adapters: Sequence[tuple[Path, float]], out: Path, backend: str = "torch", **options: Any
) -> Weights:
    """What a fresh merge by the same backend gives."""
    merge_folder(base, adapters, out, device=Accelerator("cpu", backend), min_kept=None, **options)
    return weights_of(out)


def differing(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not equal to the bit."""
    return [
        name
        for name in sorted({*one, *other})
        if name not in one
        or name not in other
        or one[name].dtype != other[name].dtype
        or not torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8))
    ]
