"""Models and adapters of the benchmarks: random weights of real shapes, generated once and identical everywhere.

They are stored under LORA_REG_BENCH_DIR, or in the user's cache. A fixture appears under its name when it is complete.
The random generator is keyed by (seed, tensor name), so that the order of generation does not matter.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

ENVIRONMENT: Final = "LORA_REG_BENCH_DIR"
SPREAD: Final = 0.02
_CHUNK: Final = 1 << 22

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Llama:
    """Dimensions of a Llama model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int

    def linear(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear layer of a block, by its path within the block."""
        width = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (width, self.hidden),
            "self_attn.v_proj": (width, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            shapes |= {f"{prefix}.{path}.weight": shape for path, shape in self.linear().items()}
            shapes |= {f"{prefix}.{name}.weight": (self.hidden,) for name in _NORMS}
        return {**shapes, "model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    def modules(self, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(out, in) of the modules whose last name is among the targets, by full path, in the order of the layers."""
        return {
            f"model.layers.{layer}.{path}": shape
            for layer in range(self.layers)
            for path, shape in self.linear().items()
            if path.rpartition(".")[2] in targets
        }

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": SPREAD,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        }


_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
QV: Final = ("q_proj", "v_proj")
ALL: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The shapes of TinyLlama-1.1B and of Llama-2-7B.
LLAMA_1B: Final = Llama(22, 2048, 5632, 32, 4, 32000)
LLAMA_7B: Final = Llama(32, 4096, 11008, 32, 32, 32000)
COMPOSED: Final = 8
# The first two blocks of LLAMA_1B, for methods that take minutes per block; a model for decomposing whole updates.
LLAMA_TWO: Final = Llama(2, 2048, 5632, 32, 4, 64)
LLAMA_SMALL: Final = Llama(2, 1024, 2816, 16, 4, 64)


def root() -> Path:
    """The folder of the fixtures, created if it is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get(ENVIRONMENT) or cache / "lora-reg-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def base(name: str, model: Llama, *, shards: int = 2) -> Path:
    """A bf16 checkpoint: matrices of normal values, norms about one."""
    return _cached(name, lambda folder: _write_base(folder, model, shards, _bf16))


def sparse_base(name: str, model: Llama, *, shards: int) -> Path:
    """A bf16 checkpoint of sparse files: full size, zero weights, hardly any disk space."""
    return _cached(name, lambda folder: _write_base(folder, model, shards, None))


def adapter(name: str, model: Llama, *, rank: int, targets: Sequence[str], seed: int = 1) -> Path:
    """A LoRA adapter in float32 as PEFT saves one: A and B of normal values, alpha twice the rank."""

    def write(folder: Path) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        for module, (rows, columns) in model.modules(targets).items():
            shapes[f"base_model.model.{module}.lora_A.weight"] = (rank, columns)
            shapes[f"base_model.model.{module}.lora_B.weight"] = (rows, rank)
        shapes = dict(sorted(shapes.items()))
        with (folder / "adapter_model.safetensors").open("wb") as file:
            _write_header(file, shapes, "F32", 4)
            for tensor, shape in shapes.items():
                for chunk in _normal(seed, tensor, shape):
                    file.write(chunk.astype("<f4").tobytes())
        config = {
            "base_model_name_or_path": None,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": sorted(targets),
            "task_type": "CAUSAL_LM",
        }
        _write_json(folder / "adapter_config.json", config)

    return _cached(name, write)


def one_billion() -> Path:
    return base("base", LLAMA_1B)


def adapters() -> dict[str, Path]:
    """The three adapters of the merge benchmark, by name."""
    return {
        "qv16": adapter("qv16", LLAMA_1B, rank=16, targets=QV),
        "all16": adapter("all16", LLAMA_1B, rank=16, targets=ALL),
        "all64": adapter("all64", LLAMA_1B, rank=64, targets=ALL),
    }


def composed(prefix: str = "c", model: Llama = LLAMA_1B) -> list[Path]:
    """The adapters of the compose benchmark. prefix: of their names, different for each model: names are cached."""
    return [adapter(f"{prefix}{n}", model, rank=16, targets=ALL, seed=100 + n) for n in range(COMPOSED)]


def _cached(name: str, write: Callable[[Path], None]) -> Path:
    """The fixture of that name, written if it is missing."""
    folder = root() / name
    if folder.is_dir():
        return folder
    staged = root() / f".{name}.{os.getpid()}"
    staged.mkdir()
    try:
        write(staged)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


Encode = Callable[[npt.NDArray[np.float32]], bytes]


def _write_base(folder: Path, model: Llama, shards: int, encode: Encode | None) -> None:
    """encode: None writes sparse files."""
    shapes = model.tensors()
    sizes = {name: 2 * int(np.prod(shape)) for name, shape in shapes.items()}
    total = sum(sizes.values())
    files: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    before = 0
    for name, shape in shapes.items():
        files[min(before * shards // total, shards - 1)][name] = shape
        before += sizes[name]
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files, 1):
        path = folder / f"model-{number:05}-of-{shards:05}.safetensors"
        with path.open("wb") as file:
            _write_header(file, tensors, "BF16", 2)
            for name, shape in tensors.items():
                weight_map[name] = path.name
                if encode is None:
                    continue
                for chunk in _normal(0, name, shape):
                    file.write(encode(chunk if len(shape) > 1 else chunk + np.float32(1.0)))
            if encode is None:
                file.truncate(file.tell() + sum(sizes[name] for name in tensors))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", model.config())


def _normal(seed: int, name: str, shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the values of a tensor in chunks, in order."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    remaining = int(np.prod(shape))
    while remaining:
        chunk = generator.standard_normal(min(remaining, _CHUNK), dtype=np.float32)
        chunk *= np.float32(SPREAD)
        yield chunk
        remaining -= chunk.size


def _bf16(values: npt.NDArray[np.float32]) -> bytes:
    """Round to nearest even; no value is large enough to overflow."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def _write_header(file: BinaryIO, shapes: Shapes, dtype: str, width: int) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + width * int(np.prod(shape))
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
