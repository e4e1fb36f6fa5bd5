"""Small random bases and adapters, written with the standard library and our own header writer.

In memory an adapter is a Draft (config and tensors), so that a test can spoil one thing; `write` puts it in a folder.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_contract.adapter.check import AdapterFile, CheckResult, check_adapter
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.fingerprint import build_fingerprint
from lora_contract.tensors import header_length, parse_header, write_header

BASE_ID = "lora-reg-fixture/small"
Tensor = tuple[str, tuple[int, ...], bytes]
"""dtype, shape, little-endian bytes."""


@dataclass
class Draft:
    """An adapter in memory. extra: further files by path."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    extra: dict[str, bytes] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        config = json.dumps(self.config, indent=2).encode()
        return {"adapter_config.json": config, "adapter_model.safetensors": weights(self.tensors), **self.extra}

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in self.files().items():
            (folder / path).write_bytes(data)
        return folder


def weights(tensors: Mapping[str, Tensor]) -> bytes:
    header = write_header([(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()], {"format": "pt"})
    return header + b"".join(data for _, _, data in tensors.values())


def values(shape: tuple[int, ...], *, dtype: str = "F32", seed: int | str = 0, scale: float = 0.05) -> Tensor:
    """A tensor of random numbers between -scale and scale."""
    count = 1
    for size in shape:
        count *= size
    source = random.Random(str(seed))
    return dtype, shape, pack([source.uniform(-scale, scale) for _ in range(count)], dtype)


def pack(numbers: Collection[float], dtype: str) -> bytes:
    """Numbers as bytes; BF16 cuts the lower half of a float32."""
    letter = {"F64": "d", "F32": "f", "BF16": "f", "F16": "e"}[dtype]
    data = struct.pack(f"<{len(numbers)}{letter}", *numbers)
    if dtype != "BF16":
        return data
    cut = bytearray(len(data) // 2)
    cut[0::2], cut[1::2] = data[2::4], data[3::4]
    return bytes(cut)


def linear_shapes(*, hidden: int, intermediate: int, heads: int, kv_heads: int) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear modules of one layer."""
    narrow = hidden // heads * kv_heads
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


def make_base(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    intermediate: int = 48,
    vocab: int = 96,
    heads: int = 4,
    kv_heads: int = 2,
    dtype: str = "BF16",
    tied: bool = False,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write a Llama of random weights: config.json, one or more safetensors files, an index where more than one."""
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        names[f"model.layers.{layer}.input_layernorm.weight"] = (hidden,)
        sizes = linear_shapes(hidden=hidden, intermediate=intermediate, heads=heads, kv_heads=kv_heads)
        names.update({f"model.layers.{layer}.{module}.weight": shape for module, shape in sizes.items()})
        names[f"model.layers.{layer}.post_attention_layernorm.weight"] = (hidden,)
    names["model.norm.weight"] = (hidden,)
    if not tied:
        names["lm_head.weight"] = (vocab, hidden)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": {"BF16": "bfloat16", "F32": "float32", "F16": "float16"}[dtype],
        "head_dim": hidden // heads,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "vocab_size": vocab,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: values(shape, dtype=dtype, seed=f"{seed}/{name}") for name, shape in names.items()}
    if shards == 1:
        (folder / "model.safetensors").write_bytes(weights(tensors))
        return folder
    placed: dict[str, str] = {}
    for shard in range(shards):
        path = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        (folder / path).write_bytes(weights(part))
        placed.update(dict.fromkeys(part, path))
    total = sum(len(data) for _, _, data in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_draft(
    base: BaseFingerprint,
    *,
    rank: int = 4,
    alpha: float = 8,
    targets: Collection[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    dtype: str = "F32",
    **config: Any,
) -> Draft:
    """A LoRA adapter with random A and B for all modules of the base whose last name is a target. `config`: further
    keys of adapter_config.json, or other values for those set here."""
    tensors: dict[str, Tensor] = {}
    for tensor in base.tensors:
        path = tensor.name.removesuffix(".weight")
        if path.rpartition(".")[2] not in targets or len(tensor.shape) != 2:
            continue
        out, in_ = tensor.shape
        stem = f"base_model.model.{path}"
        tensors[f"{stem}.lora_A.weight"] = values((rank, in_), dtype=dtype, seed=f"{seed}/{path}/A")
        tensors[f"{stem}.lora_B.weight"] = values((out, rank), dtype=dtype, seed=f"{seed}/{path}/B")
    document: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": BASE_ID,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return Draft({**document, **config}, tensors)


def make_adapter(folder: Path, base_folder: Path, **options: Any) -> Path:
    """Write a random LoRA adapter for the base in a folder; options as for `make_draft`."""
    return make_draft(fingerprint_of(base_folder), **options).write(folder)


def read_draft(folder: Path) -> Draft:
    """Load an adapter's folder into memory."""
    data = (folder / "adapter_model.safetensors").read_bytes()
    header = parse_header(data[: 8 + header_length(data[:8], len(data))], len(data))
    tensors = {t.name: (t.dtype, t.shape, data[t.file_start : t.file_end]) for t in header.tensors}
    return Draft(json.loads((folder / "adapter_config.json").read_bytes()), tensors)


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def fingerprint_of(folder: Path) -> BaseFingerprint:
    return fingerprint_of_files(read_folder(folder))


def fingerprint_of_files(files: Mapping[str, bytes]) -> BaseFingerprint:
    digests = {path: (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") for path, data in files.items()}
    return build_fingerprint(digests, reader(files))


def reader(files: Mapping[str, bytes]) -> Callable[[str, int, int], bytes]:
    """A `read` that refuses to read past the end, as a server that answers a range would."""

    def read(path: str, offset: int, length: int) -> bytes:
        data = files[path]
        assert 0 <= offset <= offset + length <= len(data), (path, offset, length, len(data))
        return data[offset : offset + length]

    return read


def base_reader(folder: Path) -> Callable[[BaseTensor, int, int], bytes]:
    files = read_folder(folder)

    def read(tensor: BaseTensor, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= tensor.end - tensor.start
        return files[tensor.file][tensor.start + offset : tensor.start + offset + length]

    return read


def check_files(
    files: Mapping[str, bytes],
    base: BaseFingerprint,
    *,
    aliases: Collection[str] = (BASE_ID,),
    accept_base: bool = False,
    base_name: str = "",
    read_base: Callable[[BaseTensor, int, int], bytes] | None = None,
) -> CheckResult:
    """Check an adapter that is in memory."""
    return check_adapter(
        [AdapterFile(path, len(data)) for path, data in files.items()],
        reader(files),
        base,
        base_aliases=aliases,
        base_name=base_name,
        accept_base=accept_base,
        read_base=read_base,
    )


def codes(result: CheckResult) -> set[str]:
    """The codes of all errors."""
    return {finding.code for finding in result.findings if finding.severity == "error"}
