"""What a merge of LoRA with any of its options must give: float64 formulas of their own, with bounds for float32.

It works on the parameters of the running model, by their names there, as an adapter does. How a checkpoint stores them
is left to whoever loads it. Formulas: peft 0.21.2 as read, and "merging.md" of the issue's references.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.oracle import FLOAT32_UNIT, Float64, Merged, read_safetensors, round_bf16

U = FLOAT32_UNIT
PREFIX = "base_model.model."


@dataclass
class Value:
    """A parameter on its way: exactly, and how far float32 arithmetic may have come from it, per element."""

    exact: Float64
    error: Float64


@dataclass(frozen=True)
class Adapter:
    config: dict[str, Any]
    tensors: dict[str, Float64]
    weight: float


def read_adapter64(folder: Path, weight: float = 1.0) -> Adapter:
    """Names without `base_model.model.`."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    return Adapter(config, {name.removeprefix(PREFIX): values for name, values in tensors.items()}, weight)


def merge_lora64(
    parameters: Mapping[str, Float64],
    adapters: Sequence[Adapter],
    *,
    transposed: Callable[[str], bool] = lambda _: False,
    experts: Mapping[str, Sequence[str]] | None = None,
    norm_roundings: int = 3,
) -> dict[str, Merged]:
    """The parameters that the adapters change.

    transposed: modules whose weight is (in, out). experts: module -> its adapted parameters, innermost wrapper first.
    norm_roundings: of the norm that DoRA divides by, 3 where its squares are summed in float64.
    """
    values: dict[str, Value] = {}

    def value(name: str) -> Value:
        return values.setdefault(name, Value(parameters[name], np.zeros_like(parameters[name])))

    for adapter in adapters:
        used: set[str] = set()
        for name in sorted(adapter.tensors):
            tensor = adapter.tensors[name]
            if match := re.fullmatch(r"(.+)\.token_adapter\.trainable_tokens_delta|(.+)\.trainable_tokens_delta", name):
                module = match[1] or match[2]
                _rows(value(f"{module}.weight"), tensor, _tokens(adapter.config, module), adapter.weight)
                used.add(name)
            elif match := re.fullmatch(r"(.+?)((?:\.base_layer)*)\.(lora_A|lora_embedding_A)(\.weight)?", name):
                module, nesting, half, suffix = match[1], match[2], match[3], match[4] or ""
                other = f"{module}{nesting}.{half.replace('_A', '_B')}{suffix}"
                down, up = tensor, adapter.tensors[other]
                used |= {name, other}
                if experts and module in experts:
                    # The outermost wrapper, of no further base_layer, is that of the last parameter.
                    order = list(experts[module])
                    parameter = f"{module}.{order[len(order) - 1 - nesting.count('base_layer')]}"
                    _expert_pairs(value(parameter), down, up, adapter, parameter)
                    continue
                path = module.replace(".base_layer.", ".")
                weight = value(f"{path}.weight" if f"{path}.weight" in parameters else f"{path}.in_proj_weight")
                owner, times = path, 1.0
                if ".base_layer.out_proj" in module:
                    owner, times = path.rpartition(".")[0], 2.0
                scale = _scale(adapter.config, owner, down.shape[0])
                flip = half == "lora_embedding_A" or transposed(path)
                _apply_pair(
                    weight, parameters.get(f"{path}.weight", weight.exact),
                    _expand(down, adapter.config, path, "a"), _expand(up, adapter.config, path, "b"),
                    times * scale, adapter, path=module, flip=flip, norm_roundings=norm_roundings, used=used,
                )  # fmt: skip
                bias = f"{module}{nesting}.lora_B.bias"
                if bias in adapter.tensors:
                    _add_bias(value(f"{path}.bias"), adapter.tensors[bias], scale * adapter.weight)
                    used.add(bias)
        for name in sorted(set(adapter.tensors) - used):
            if ".lora_velora_" in name or ".lora_monteclora_" in name:
                continue  # state of the training
            plain = name.replace(".base_layer.", ".")
            if plain.endswith(".weight") and plain != name:
                assert np.array_equal(adapter.tensors[name], parameters[plain]), f"{name}: differs from the base"
                continue
            assert plain in parameters, f"{name}: no tensor of a LoRA adapter with this config"
            found = value(plain)
            found.exact, found.error = adapter.tensors[name], np.zeros_like(adapter.tensors[name])
    return {
        name: Merged(round_bf16(found.exact), found.exact, found.error, parameters[name])
        for name, found in values.items()
    }


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    def by_pattern(patterns: dict[str, Any] | None, otherwise: Any) -> Any:
        return next((v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", module)), otherwise)

    assert by_pattern(config.get("rank_pattern"), config["r"]) == rank, module
    alpha = float(by_pattern(config.get("alpha_pattern"), config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _tokens(config: dict[str, Any], module: str) -> list[int]:
    tokens = config.get("trainable_token_indices") or config.get("token_indices")
    return tokens if isinstance(tokens, list) else tokens[module.rpartition(".")[2]]


def _expand(factor: Float64, config: dict[str, Any], path: str, half: str) -> Float64:
    """BD-LoRA: blocks below each other, moved to the diagonal."""
    options = config.get("use_bdlora") or {}
    if not any(pattern in path.rpartition(".")[2] for pattern in options.get(f"target_modules_bd_{half}") or []):
        return factor
    blocks = np.split(factor, options["nblocks"])
    wide = np.zeros((factor.shape[0], factor.shape[1] * len(blocks)))
    row = column = 0
    for block in blocks:
        wide[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return wide


def _apply_pair(
    weight: Value,
    base: Float64,
    down: Float64,
    up: Float64,
    scale: float,
    adapter: Adapter,
    *,
    path: str,
    flip: bool,
    norm_roundings: int,
    used: set[str],
) -> None:
    rank = down.shape[0]
    kernel = down.shape[2:]
    up = up.reshape(up.shape[:2])
    delta, size = (np.tensordot(b, a, axes=1) for b, a in ((up, down), (np.abs(up), np.abs(down))))
    delta, size = scale * delta, abs(scale) * size
    if flip:
        assert not kernel
        delta, size = delta.T, size.T
    # Scale, weight, products, rank - 1 sums, scaling, last sum (Higham's gamma).
    unit = (rank + 4) * U / (1 - (rank + 4) * U)
    magnitude = adapter.tensors.get(f"{path}.lora_magnitude_vector")
    if magnitude is None:
        weight.error = weight.error + unit * (np.abs(weight.exact) + abs(adapter.weight) * size)
        weight.exact = weight.exact + adapter.weight * delta
        return
    used.add(f"{path}.lora_magnitude_vector")
    axes = (0,) if flip else tuple(range(1, base.ndim))
    direction = base + delta
    norm = np.sqrt((direction**2).sum(axis=axes, keepdims=True))
    off = np.sqrt(((unit * (np.abs(base) + size)) ** 2).sum(axis=axes, keepdims=True)) / norm + norm_roundings * U
    factor = magnitude.reshape(norm.shape) / norm
    new = factor * (weight.exact + delta)
    error = np.abs(factor) * (weight.error + unit * (np.abs(weight.exact) + size)) + np.abs(new) * (off + 2 * U)
    share = adapter.weight
    blended = weight.exact + share * (new - weight.exact)
    if share != 1:
        # Difference, product and sum of the blend.
        error = (
            weight.error + abs(share) * (error + weight.error) + 3 * U * (np.abs(weight.exact) + abs(share) * (np.abs(new) + np.abs(weight.exact)))
        )  # fmt: skip
    # Terms of second order.
    weight.exact, weight.error = blended, 1.001 * error


def _expert_pairs(weight: Value, down: Float64, up: Float64, adapter: Adapter, path: str) -> None:
    """A stacked by expert, B interleaved: rank i of expert e is its column i * E + e."""
    experts = weight.exact.shape[0]
    rank = down.shape[0] // experts
    scale = _scale(adapter.config, path, rank) * adapter.weight
    unit = (rank + 4) * U / (1 - (rank + 4) * U)
    exact, error = weight.exact.copy(), weight.error.copy()
    for expert in range(experts):
        a, b = down[expert * rank : (expert + 1) * rank], up[:, expert::experts]
        delta, size = scale * b @ a, abs(scale) * np.abs(b) @ np.abs(a)
        if delta.shape != exact[expert].shape or adapter.config.get("oracle_takes_rows"):
            delta, size = delta.T, size.T
        error[expert] += unit * (np.abs(exact[expert]) + size)
        exact[expert] += delta
    weight.exact, weight.error = exact, error


def _add_bias(bias: Value, term: Float64, scale: float) -> None:
    bias.error = bias.error + 4 * U * (np.abs(bias.exact) + np.abs(scale * term))
    bias.exact = bias.exact + scale * term


def _rows(weight: Value, rows: Float64, indices: Sequence[int], share: float) -> None:
    exact, error = weight.exact.copy(), weight.error.copy()
    for index, row in zip(indices, rows, strict=True):
        before = weight.exact[index]
        exact[index] = before + share * (row - before)
        error[index] = 0 if share == 1 else 4 * U * (np.abs(before) + abs(share) * (np.abs(row) + np.abs(before)))
    weight.exact, weight.error = exact, error
