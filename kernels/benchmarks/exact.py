"""Checks of results against float64, made before a speed is reported."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

# Share of the elements that may differ from the correctly rounded sum.
MAX_DIFFERING: Final = 1e-4
_TYPES: Final = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_SMALLEST_BF16: Final = 2.0**-133
_CHUNK: Final = 1 << 20


class WrongResult(Exception):
    """A wrong result, whose speed is not reported."""


class Tensor(NamedTuple):
    file: Path
    start: int
    dtype: str
    shape: tuple[int, ...]

    def raw(self) -> Array:
        """The stored elements; BF16 as its bits."""
        return np.memmap(self.file, _TYPES[self.dtype], "r", self.start, self.shape)

    def values(self) -> F64:
        """The elements in float64, which is exact."""
        raw = self.raw()
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return raw.astype(np.float64)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start = 8 + length + entry["data_offsets"][0]
                found[name] = Tensor(path, start, entry["dtype"], tuple(entry["shape"]))
    return found


def check_merge(base: Path, adapter: Path, merged: Path, *, layers: Iterable[int]) -> dict[str, Any]:
    """Compare a merge of one plain LoRA adapter with the correctly rounded float64 one.

    Compares the linear layers of the blocks `layers` that the adapter touches, and all bytes of untouched tensors. A
    value may differ from the correctly rounded one within float32's own error:
    |got - exact| <= half a step of bf16 + gamma * (|W| + |s| |B| |A|), gamma = (r + 3) * 2^-24, and in at most
    MAX_DIFFERING of the elements. Raises WrongResult.
    """
    before, after, factors = tensors(base), tensors(merged), tensors(adapter)
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    scale, gamma = config["lora_alpha"] / config["r"], (config["r"] + 3) * 2.0**-24
    if before.keys() != after.keys():
        raise WrongResult(f"The result has other tensors than the base: {sorted(before.keys() ^ after.keys())[:3]}")
    touched = {name: f"base_model.model.{name.removesuffix('.weight')}" for name in before}
    touched = {name: module for name, module in touched.items() if f"{module}.lora_A.weight" in factors}
    chosen = tuple(f"model.layers.{layer}." for layer in layers)
    compared = differing = 0
    for name, old in before.items():
        new = after[name]
        if (new.dtype, new.shape) != (old.dtype, old.shape):
            raise WrongResult(f"{name} is {new.dtype} {new.shape}, but was {old.dtype} {old.shape}.")
        if name not in touched:
            if not _same_bytes(old.raw(), new.raw()):
                raise WrongResult(f"{name} is not touched by the adapter, but was changed.")
        elif name.startswith(chosen):
            down, up = (factors[f"{touched[name]}.lora_{half}.weight"].values() for half in "AB")
            weight, got = old.values(), new.values()
            exact = weight + scale * (up @ down)
            slack = gamma * (np.abs(weight) + abs(scale) * (np.abs(up) @ np.abs(down)))
            excess = np.abs(got - exact) - _half_step(exact) - slack
            if not bool((excess <= 0).all()):
                worst = np.unravel_index(int(np.nanargmax(excess)), excess.shape)
                raise WrongResult(f"{name} at {tuple(map(int, worst))}: {got[worst]} instead of {exact[worst]}.")
            compared += got.size
            differing += int((got != _round(exact)).sum())
    if not compared:
        raise WrongResult("There was nothing to compare.")
    if differing > MAX_DIFFERING * compared:
        raise WrongResult(f"{differing} of {compared} elements are not correctly rounded.")
    return {"compared": compared, "differing": differing}


def products(folder: Path, modules: Sequence[str]) -> dict[str, F64]:
    """s B A of an adapter's modules, in float64."""
    factors = tensors(folder)
    config = json.loads((folder / "adapter_config.json").read_bytes())
    found = {}
    for module in modules:
        down, up = (factors[f"base_model.model.{module}.lora_{half}.weight"].values() for half in "AB")
        rank = _pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        # PEFT pads with rows of zeros: the scale depends on the config's rank, not the file's.
        found[module] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank) * (up @ down)
    return found


def _pattern(pattern: dict[str, float] | None, module: str, default: float) -> float:
    """The value of the pattern that is this module's path. Other patterns are not supported here."""
    for key, value in (pattern or {}).items():
        exact = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if module == exact or module.endswith(f".{exact}"):
            return value
    return default


def _same_bytes(one: Array, other: Array) -> bool:
    first, second = one.reshape(-1), other.reshape(-1)
    return all(np.array_equal(first[at : at + _CHUNK], second[at : at + _CHUNK]) for at in range(0, first.size, _CHUNK))


def _half_step(values: F64) -> F64:
    """Half the spacing of bf16 numbers around each value."""
    _, exponents = np.frexp(values)
    result: F64 = np.maximum(np.ldexp(1.0, exponents - 9), _SMALLEST_BF16 / 2)
    return result


def _round(values: F64) -> F64:
    """Round once to the nearest bf16, ties to even. A bf16 step is a power of two, so division by it is exact."""
    step = 2 * _half_step(values)
    result: F64 = np.rint(values / step) * step
    return result
