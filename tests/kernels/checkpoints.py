"""Small checkpoints and adapters, written byte by byte for the tests of the merge, and read back."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.oracle import round_bf16

Tensors = Mapping[str, tuple[str, NDArray[Any]]]
STORAGE = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I8": "|i1", "U8": "|u1"}


def stored(dtype: str, values: NDArray[Any]) -> NDArray[Any]:
    """Values as a file holds them. Values that are uint16 already are taken as bf16 bit patterns."""
    if dtype == "BF16" and values.dtype != np.uint16:
        return round_bf16(values.astype(np.float64))
    return values.astype(STORAGE[dtype])


def exact(dtype: str, raw: NDArray[Any]) -> NDArray[np.float64]:
    """Stored elements in float64."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.astype(np.float64)


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, values) in tensors.items():
        raw = stored(dtype, values).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def read_raw(path: Path) -> dict[str, tuple[str, NDArray[Any]]]:
    """dtype and stored elements of every tensor, in the order of the header."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    result = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        raw = np.frombuffer(data[begin:end], STORAGE[entry["dtype"]]).reshape(entry["shape"])
        result[name] = (entry["dtype"], raw)
    return result


def read_model(folder: Path) -> dict[str, tuple[str, NDArray[Any]]]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in read_raw(path).items()}


def write_base(folder: Path, shards: Sequence[Tensors], **config: Any) -> Path:
    """A model folder of one file, or of several with an index."""
    folder.mkdir(parents=True)
    document = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False, **config}
    (folder / "config.json").write_text(json.dumps(document))
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0])
        return folder
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """An adapter folder; names without `base_model.model.`. Its config names no targets unless told."""
    folder.mkdir(parents=True)
    document = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    write_safetensors(
        folder / "adapter_model.safetensors", {f"base_model.model.{name}": value for name, value in tensors.items()}
    )
    return folder


def pair(module: str, *, out: int, in_: int, r: int, seed: int, size: float = 0.1, dtype: str = "F32") -> Tensors:
    """Both halves of a linear update, random."""
    random = np.random.default_rng(seed)
    return {
        f"{module}.lora_A.weight": (dtype, size * random.standard_normal((r, in_))),
        f"{module}.lora_B.weight": (dtype, size * random.standard_normal((out, r))),
    }


def matrix(*shape: int, seed: int, size: float = 0.05) -> NDArray[np.float64]:
    return size * np.random.default_rng(seed).standard_normal(shape)
