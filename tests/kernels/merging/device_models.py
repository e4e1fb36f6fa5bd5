"""A small model and an adapter whose sums are exact in float32, so that their order does not matter."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lora_kernels.merging.stream import Chunk
from tests.kernels.checkpoints import Tensors, matrix, write_adapter, write_base

Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.0.self_attn.k_proj"
V = "model.layers.1.mlp.up_proj"

EXACT: tuple[dict[str, Any], ...] = (
    {},
    {"dtype": "float32"},
    {"dtype": "float16"},
    {"dtype": "nf4"},
    {"onto": "nf4"},
    {"onto": "nf4", "dtype": "nf4"},
    {"rounding": "stochastic", "dtype": "bfloat16", "seed": 3},
)


def exact_base(folder: Path, *, rows: int = 3000) -> Path:
    """Two files; bf16, fp16 and float32 matrices, and tensors that are copied. rows: of the largest; 0 for none."""
    first: Tensors = {
        f"{Q}.weight": ("BF16", matrix(64, 96, seed=1)),
        "model.layers.0.input_layernorm.weight": ("F32", matrix(96, seed=2)),
        f"{K}.weight": ("F16", matrix(48, 96, seed=3)),
        "model.norm.weight": ("BF16", matrix(96, seed=4)),
    }
    second: dict[str, Any] = {
        "model.embed_tokens.weight": ("BF16", matrix(30, 96, seed=5)),
        f"{V}.weight": ("BF16", matrix(rows, 96, seed=6)),
        "lm_head.weight": ("BF16", matrix(30, 96, seed=7)),
    }
    if not rows:
        del second[f"{V}.weight"]
    return write_base(folder, [first, second], dtype="bfloat16")


def exact_adapter(folder: Path, *, rows: int = 3000) -> Path:
    """Factors of small multiples of 1/64, bf16 and float32: products and their sums have few bits."""
    tensors: dict[str, Any] = {}
    for seed, (module, out, dtype) in enumerate(((Q, 64, "BF16"), (K, 48, "F32"), (V, rows, "BF16"))):
        if not out:
            continue
        random = np.random.default_rng(seed)
        tensors[f"{module}.lora_A.weight"] = dtype, random.integers(-3, 4, (4, 96)) / 64
        tensors[f"{module}.lora_B.weight"] = dtype, random.integers(-3, 4, (out, 4)) / 64
    return write_adapter(folder, tensors)


def whole(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(bytes(chunk.view) for chunk in chunks)
