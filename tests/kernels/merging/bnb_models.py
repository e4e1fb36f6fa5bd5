"""A tiny Llama, and what transformers and bitsandbytes write of it: the checkpoints that merges read and write."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.kernels.checkpoints import Tensors, pair, write_adapter

HIDDEN, INNER = 64, 128
Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
ADAPTER: Tensors = {
    **pair(Q, out=HIDDEN, in_=HIDDEN, r=4, seed=1, size=0.05),
    **pair(DOWN, out=HIDDEN, in_=INNER, r=4, seed=2, size=0.05),
}


def make_llama(folder: Path, *, inner: int = INNER, dtype: torch.dtype = torch.bfloat16) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=HIDDEN,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **options)


def quantize(full: Path, folder: Path, *, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Path:
    """Save what bitsandbytes makes of a model; none is ever run, lest its weights be repacked in place."""
    from transformers import BitsAndBytesConfig

    if "load_in_8bit" not in options:
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **options}
    load(full, quantization_config=BitsAndBytesConfig(**options), dtype=dtype).save_pretrained(folder)
    return folder


def adapter(folder: Path, tensors: Tensors = ADAPTER) -> Path:
    return folder if folder.exists() else write_adapter(folder, tensors)


def read(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def state_of(tensors: dict[str, torch.Tensor], weight: str) -> tuple[str, dict[str, Any]]:
    name = next(name for name in tensors if name.startswith(f"{weight}.quant_state."))
    return name, json.loads(bytes(tensors[name].tolist()))


def as_json(state: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def dequantized(tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The quantized weights of a checkpoint as bitsandbytes gives them."""
    import bitsandbytes.functional as bnb

    found = {}
    for name, value in tensors.items():
        if name.endswith(".SCB"):
            weight = f"{name.removesuffix('.SCB')}.weight"
            found[weight] = bnb.int8_vectorwise_dequant(tensors[weight], value).to(dtype)
        if ".quant_state." in name:
            weight = name.partition(".quant_state.")[0]
            parts = {key: part for key, part in tensors.items() if key.startswith(f"{weight}.")}
            state = bnb.QuantState.from_dict(dict(parts), device=torch.device("cpu"))
            shape, state.dtype = state.shape, dtype
            # As one row: its AVX-512 path is wrong where blocks straddle rows.
            state.shape = torch.Size((1, math.prod(shape)))
            found[weight] = bnb.dequantize_4bit(tensors[weight], state).reshape(shape)
    return found


def change(module: str, tensors: Tensors = ADAPTER) -> np.ndarray:
    """dW of an adapter of rank 4 and alpha 8, in float64."""
    a, b = (tensors[f"{module}.lora_{half}.weight"][1].astype(np.float32).astype(np.float64) for half in "AB")
    return 2 * b @ a
