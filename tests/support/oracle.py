"""What a merge must give: an independent merge in float64, for tests to judge ours and others' by.

numpy and json only, with a safetensors reader and a rounding of its own, so that it shares no fault with the code under
test. It reads LoRA adapters as PEFT writes them: plain and rsLoRA scale, rank and alpha patterns, LoRA on embeddings,
modules_to_save. Any other adapter, and any tensor that such an adapter has no business to hold, is a ValueError.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Bits = NDArray[np.uint16]

FLOAT32_UNIT = 2.0**-24
_PREFIX = "base_model.model."
_NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Merged(NamedTuple):
    """One merged tensor.

    `bits` is the result correctly rounded to bf16, `exact` the result in float64, `float32_error` a bound, per element,
    on how far float32 arithmetic in any order of summation may lie from `exact`. `base` is the tensor before the merge.
    """

    bits: Bits
    exact: Float64
    float32_error: Float64
    base: Float64


@dataclass(frozen=True, kw_only=True)
class Bf16Comparison:
    """How a bf16 tensor differs from the correctly rounded result.

    `ulps` counts the differing elements by their distance in bf16 steps; `beyond_float32` counts those that no float32
    computation explains.
    """

    elements: int
    ulps: dict[int, int]
    beyond_float32: int

    @property
    def differing(self) -> int:
        return sum(self.ulps.values())


def read_safetensors(path: Path) -> dict[str, Float64]:
    """Return every tensor of a safetensors file, exactly, in float64. F64, F32, F16 and BF16 only."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        raw = np.frombuffer(data[begin:end], dtype=_NUMPY_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = from_bf16(raw) if entry["dtype"] == "BF16" else raw.astype(np.float64)
    return tensors


def read_checkpoint(directory: Path) -> dict[str, Float64]:
    """Return every tensor of a model folder, from its shards if it has an index."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return read_safetensors(directory / "model.safetensors")
    placed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    shards = {shard: read_safetensors(directory / shard) for shard in set(placed.values())}
    return {name: shards[shard][name] for name, shard in placed.items()}


def from_bf16(bits: Bits) -> Float64:
    """Return the values of bf16 bit patterns, exactly."""
    widened = bits.astype(np.uint32) << np.uint32(16)
    return widened.view(np.float32).astype(np.float64)


def round_bf16(values: Float64) -> Bits:
    """Return the bit patterns of the bf16 numbers nearest to `values`, ties to even, in a single rounding.

    Going through float32, as torch does, rounds twice and is wrong where the first rounding makes a tie.
    """
    magnitude = np.abs(values)
    _, exponent = np.frexp(magnitude)
    # bf16 has 8 significant bits; below 2**-126 its steps stay 2**-133.
    step = np.maximum(exponent - 8, -133)
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = np.ldexp(np.rint(np.ldexp(magnitude, -step)), step)
        single = np.copysign(nearest, values).astype(np.float32)
    pattern: NDArray[np.uint32] = single.view(np.uint32)
    return (pattern >> np.uint32(16)).astype(np.uint16)


def merge64(base_dir: Path, adapter_dir: Path, weight: float = 1.0) -> dict[str, Merged]:
    """Return the tensors of the base that the adapter changes, merged: `W + weight * s * B @ A`, by the base's names.

    `s` is alpha/r, or alpha/sqrt(r) with rsLoRA. Modules of `modules_to_save` replace the base's tensors; they have no
    delta to weigh, so `weight` must then be 1.
    """
    config = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    _refuse_unknown(config)
    adapter = read_safetensors(adapter_dir / "adapter_model.safetensors")
    base = read_checkpoint(base_dir)
    merged: dict[str, Merged] = {}
    used: set[str] = set()
    for name in adapter:
        if not name.startswith(_PREFIX):
            raise ValueError(f"{name}: not a name that PEFT writes")
        plain = name.removeprefix(_PREFIX)
        if match := re.fullmatch(r"(.+)\.(lora_A\.weight|lora_embedding_A)", plain):
            module, half = match.groups()
            other = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
            down, up = adapter[name], adapter[other]
            scale = weight * _scale(config, module, rank=down.shape[0])
            delta, size = scale * (up @ down), abs(scale) * (np.abs(up) @ np.abs(down))
            if half == "lora_embedding_A":
                delta, size = delta.T, size.T
            merged[f"{module}.weight"] = _sum(base[f"{module}.weight"], delta, size, rank=down.shape[0])
            used |= {name, other}
        elif plain.endswith(".base_layer.weight"):
            if not np.array_equal(adapter[name], base[plain.replace(".base_layer.", ".")]):
                raise ValueError(f"{name}: differs from the base")
            used.add(name)
        elif _is_saved(config, module=plain.rpartition(".")[0]):
            if weight != 1.0:
                raise ValueError(f"{name}: a saved module cannot be weighed")
            values = adapter[name]
            if values.shape != base[plain].shape:
                raise ValueError(f"{name}: shape {values.shape}, the base has {base[plain].shape}")
            merged[plain] = Merged(round_bf16(values), values, np.zeros_like(values), base[plain])
            used.add(name)
    if left := sorted(set(adapter) - used):
        raise ValueError(f"{left[0]}: no tensor of a LoRA adapter with this config")
    return merged


def compare_bf16(bits: Bits, merged: Merged) -> Bf16Comparison:
    """Compare a merge in bf16, given as bit patterns, with the correctly rounded one."""
    if bits.shape != merged.bits.shape:
        raise ValueError(f"shape {bits.shape}, expected {merged.bits.shape}")
    got, right = _order(bits), _order(merged.bits)
    distance = np.abs(got - right)
    # Rounding keeps order: what float32 may give lies between the roundings of the ends of its interval.
    low = _order(round_bf16(merged.exact - merged.float32_error))
    high = _order(round_bf16(merged.exact + merged.float32_error))
    ulps = Counter(distance[distance > 0].tolist())
    return Bf16Comparison(
        elements=bits.size, ulps=dict(sorted(ulps.items())), beyond_float32=int(((got < low) | (got > high)).sum())
    )


def _refuse_unknown(config: dict[str, Any]) -> None:
    if config["peft_type"] != "LORA":
        raise ValueError(f"peft_type {config['peft_type']}: the oracle knows LORA alone")
    for key in ("use_dora", "lora_bias", "fan_in_fan_out", "layer_replication", "trainable_token_indices"):
        if config.get(key):
            raise ValueError(f"{key}: not known to the oracle")
    if config.get("bias", "none") != "none":
        raise ValueError(f"bias {config['bias']}: not known to the oracle")


def _is_saved(config: dict[str, Any], *, module: str) -> bool:
    # PEFT's rule compares ends of names, not their parts: "norm" saves every input_layernorm too.
    return module.endswith(tuple(config.get("modules_to_save") or []))


def _scale(config: dict[str, Any], module: str, *, rank: int) -> float:
    expected = _by_pattern(config.get("rank_pattern"), module, config["r"])
    if expected != rank:
        raise ValueError(f"{module}: rank {rank}, the config says {expected}")
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: dict[str, Any] | None, module: str, otherwise: Any) -> Any:
    # PEFT's rule: the first key in order whose regular expression matches the end of the module's name.
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise


def _sum(base: Float64, delta: Float64, size: Float64, *, rank: int) -> Merged:
    if base.shape != delta.shape:
        raise ValueError(f"delta of shape {delta.shape}, the base has {base.shape}")
    exact = base + delta
    # Roundings on the way to one element: scale, weight, products, rank - 1 sums, scaling, last sum (Higham's gamma).
    roundings = (rank + 4) * FLOAT32_UNIT
    return Merged(round_bf16(exact), exact, roundings / (1 - roundings) * (np.abs(base) + size), base)


def _order(bits: Bits) -> NDArray[np.int64]:
    """Map bf16 bit patterns to integers in the order of their values, neighbours one apart, both zeros at 0."""
    magnitude = (bits & 0x7FFF).astype(np.int64)
    return np.where(bits & 0x8000, -magnitude, magnitude)
