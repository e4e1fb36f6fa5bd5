"""Adapters of a tiny random model, composed by PEFT itself and by ours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_kernels.adapters import open_adapter

F64 = NDArray[np.float64]
Factors = dict[str, tuple[F64, F64]]
"""B with the scale in it and A, by module path."""


def factors(folder: Path) -> Factors:
    with open_adapter(folder) as reader:
        loaded = {path: reader.load(path) for path in reader.modules}
    return {path: (m.scale * m.b.astype(np.float64), m.a.astype(np.float64)) for path, m in loaded.items()}


def products(folder: Path) -> dict[str, F64]:
    return {path: b @ a for path, (b, a) in factors(folder).items()}


def peft_model(base: Path, folders: Sequence[Path]) -> Any:
    """The base in float32 with the adapters loaded under the names a0, a1, …"""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="a0")
    for index, folder in enumerate(folders[1:], 1):
        adapted.load_adapter(folder, f"a{index}")
    return adapted


def peft_factors(adapted: Any, name: str) -> Factors:
    """The factors of an adapter in a PEFT model, the scale in B."""
    found: Factors = {}
    for path, layer in adapted.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        if name in layer.lora_A:
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        elif name in layer.lora_embedding_A:
            a, b = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
        else:
            continue
        half = [tensor.detach().double().numpy() for tensor in (b, a)]
        found[path.removeprefix("base_model.model.")] = (layer.scaling[name] * half[0], half[1])
    return found


def composed_by_peft(
    base: Path, folders: Sequence[Path], weights: Sequence[float], method: str, **options: Any
) -> Factors:
    """What `add_weighted_adapter` makes."""
    adapted = peft_model(base, folders)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.add_weighted_adapter(
            [f"a{index}" for index in range(len(folders))], list(weights), "new", combination_type=method, **options
        )
    return peft_factors(adapted, "new")
