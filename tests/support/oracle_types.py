"""What a merge of the types beside LoRA must give: dense float64 formulas, one for each, in numpy alone.

Written from the papers' and PEFT's formulas, one whole matrix at a time, sharing no code with what is under test. A
formula gives the new weight and a bound, per element, on how far float32 arithmetic may lie from it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.support.oracle import FLOAT32_UNIT, Merged, read_checkpoint, read_safetensors, round_bf16

Float64 = NDArray[np.float64]
Tensors = dict[str, Float64]


class Given(NamedTuple):
    """A module: its tensors by suffix, the model-level ones, its weight as (out, in…), its bias, the config."""

    module: str
    tensors: Tensors
    shared: Tensors
    weight: Float64
    bias: Float64 | None
    config: dict[str, Any]


class Result(NamedTuple):
    """None for a bias that stays. size: magnitude that the error of one rounding is relative to; steps: roundings."""

    weight: Float64
    size: Float64
    steps: int
    bias: Float64 | None = None
    bias_size: Float64 | None = None


Formula = Callable[[Given], Result]


def merge_types(
    base_dir: Path, adapters: list[tuple[Path, float]], stored_transposed: tuple[str, ...] = ()
) -> dict[str, Merged]:
    """The tensors of the base that the adapters change, one adapter after the other. stored_transposed: ends of the
    names of modules whose weight is stored (in, out)."""
    base = read_checkpoint(base_dir)
    now = dict(base)
    error = {name: np.zeros_like(values) for name, values in base.items()}
    touched: set[str] = set()
    for folder, share in adapters:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = read_safetensors(folder / "adapter_model.safetensors")
        modules, shared = _by_module(tensors, config["peft_type"])
        for module, own in modules.items():
            name, turn = f"{module}.weight", module.endswith(stored_transposed) if stored_transposed else False
            weight = now[name].T if turn else now[name]
            result = FORMULAS[config["peft_type"]](
                Given(module, own, shared, weight, now.get(f"{module}.bias"), config)
            )
            parts = [(name, result.weight.T if turn else result.weight, result.size.T if turn else result.size)]
            if result.bias is not None and result.bias_size is not None:
                parts.append((f"{module}.bias", result.bias, result.bias_size))
            for tensor, new, size in parts:
                old = now[tensor]
                now[tensor] = old + share * (new - old)
                roundings = (result.steps + 6) * FLOAT32_UNIT
                # Blending takes the old value and the new one apart and adds them up again.
                scaled = np.abs(old) + (abs(share) + abs(1 - share)) * (size + np.abs(new))
                grown = 1 + abs(share) * float((size / np.maximum(np.abs(old), 1e-30)).max(initial=1.0, where=old != 0))
                error[tensor] = error[tensor] * min(grown, 10.0) + roundings / (1 - roundings) * scaled
                touched.add(tensor)
    return {name: Merged(round_bf16(now[name]), now[name], error[name], base[name]) for name in sorted(touched)}


def _by_module(tensors: Tensors, peft_type: str) -> tuple[dict[str, Tensors], Tensors]:
    modules: dict[str, Tensors] = {}
    shared: Tensors = {}
    for name, values in tensors.items():
        rest = name.removeprefix("base_model.model.")
        if rest == name:
            shared[name.removeprefix("base_model.")] = values
            continue
        found = re.fullmatch(SUFFIXES[peft_type], rest)
        assert found is not None, name
        modules.setdefault(found[1], {})[found[2]] = values
    return modules, shared


def _plus(given: Given, delta: Float64, size: Float64, steps: int) -> Result:
    """Additive: the size is that of W and of the sums in dW, taken with absolute values."""
    shape = given.weight.shape
    return Result(given.weight + delta.reshape(shape), np.abs(given.weight) + np.abs(size).reshape(shape), steps=steps)


def _scale(given: Given) -> float:
    config = given.config
    rank, alpha = config["r"], config.get("alpha", config.get("lora_alpha"))
    for key, value in (config.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", given.module):
            rank = value
            break
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", given.module):
            alpha = value
            break
    return float(alpha) / rank


def adalora(given: Given) -> Result:
    a, b, e = given.tensors["lora_A"], given.tensors["lora_B"], given.tensors["lora_E"]
    scale = given.config["lora_alpha"] / (given.config["init_r"] + 1e-5)
    size = scale * (np.abs(b) @ np.abs(a * e))
    return _plus(given, scale * (b @ (e * a)), size, a.shape[0] + 4)


def loha(given: Given) -> Result:
    t = given.tensors
    halves, sizes = [], []
    steps = 0
    for half in "12":
        a, b, core = t[f"hada_w{half}_a"], t[f"hada_w{half}_b"], t.get(f"hada_t{half}")
        if core is None:
            halves.append(a @ b)
            sizes.append(np.abs(a) @ np.abs(b))
        else:
            subscripts = "ijkl,jq,ip->pqkl"
            halves.append(np.einsum(subscripts, core, b, a))
            sizes.append(np.einsum(subscripts, np.abs(core), np.abs(b), np.abs(a)))
        steps += 2 * b.shape[0] + 2
    scale = _scale(given)
    return _plus(given, scale * halves[0] * halves[1], abs(scale) * sizes[0] * sizes[1], steps)


def lokr(given: Given) -> Result:
    t = given.tensors

    def factor(number: int, of: Callable[[Float64], Float64]) -> Float64:
        name = f"lokr_w{number}"
        if name in t:
            return of(t[name])
        a, b = of(t[f"{name}_a"]), of(t[f"{name}_b"])
        core = t.get(f"lokr_t{number}")
        return a @ b if core is None else np.einsum("ijkl,ip,jr->prkl", of(core), a, b)

    def product(of: Callable[[Float64], Float64]) -> Float64:
        first, second = factor(1, of), factor(2, of)
        if second.ndim == 4:
            first = first[:, :, None, None]
        # numpy's kron puts missing dimensions in front, as torch's does.
        return np.kron(first, second)

    scale = _scale(given)
    steps = 2 * given.config["r"] + 6
    return _plus(given, scale * product(lambda x: x), abs(scale) * product(np.abs), steps)


def ia3(given: Given) -> Result:
    scale, weight = given.tensors["ia3_l"], given.weight
    names = given.config["feedforward_modules"]
    inputs = (
        re.fullmatch(names, given.module) is not None
        if isinstance(names, str)
        else any(given.module.endswith(name) for name in names)
    )
    flat = scale.reshape(-1)
    kernel = (1,) * (weight.ndim - 2)
    if not inputs:
        new = weight * flat.reshape(-1, 1, *kernel)
        bias = given.bias * flat if given.bias is not None else None
        return Result(new, np.abs(new), 1, bias, np.abs(bias) if bias is not None else None)
    groups = flat.size // weight.shape[1]
    new = weight.copy()
    rows = weight.shape[0] // groups
    for group in range(groups):
        part = flat[group * weight.shape[1] : (group + 1) * weight.shape[1]]
        new[group * rows : (group + 1) * rows] *= part.reshape(1, -1, *kernel)
    return Result(new, np.abs(new), 1)


def vera(given: Given) -> Result:
    prefix = given.config["peft_type"].lower()
    out, in_ = given.weight.shape
    rank = given.config["r"]
    a = given.shared[f"{prefix}_A"][:rank, :in_]
    b = given.shared[f"{prefix}_B"][:out]
    d = given.tensors[f"{prefix}_lambda_d"][:rank]
    rows = given.tensors[f"{prefix}_lambda_b"]
    delta = np.diag(rows) @ b @ np.diag(d) @ a
    return _plus(given, delta, np.abs(rows)[:, None] * (np.abs(b) @ (np.abs(d)[:, None] * np.abs(a))), rank + 4)


def _cayley(skew: Float64) -> Float64:
    eye = np.eye(len(skew))
    return (eye - skew) @ np.linalg.inv(eye + skew)


def _rotated(weight: Float64, q: Float64, blocks: int, steps: int) -> Result:
    """W Q^T. The solver's own error grows with the block and its condition, which is small for skew matrices."""
    flat = weight.reshape(len(weight), -1)
    new = (q @ flat.T).T
    size = np.abs(flat) @ np.abs(q).T
    # What a rotation's own error does: every element of a row may be hit by every other one of its block.
    spread = np.sqrt((flat * flat).sum(1, keepdims=True))
    return Result(new.reshape(weight.shape), (size + spread).reshape(weight.shape), steps)


def oft(given: Given) -> Result:
    config = given.config
    embedding = "oft_embedding_R.weight" in given.tensors
    numbers = given.tensors["oft_embedding_R.weight" if embedding else "oft_R.weight"]
    in_ = math.prod(given.weight.shape[1:])
    size = next(b for b in range(1, in_ + 1) if b * (b - 1) // 2 == numbers.shape[1])
    blocks = []
    for row in numbers:
        skew = np.zeros((size, size))
        position = 0
        for i in range(size):
            for j in range(i + 1, size):
                skew[i, j], skew[j, i] = row[position], -row[position]
                position += 1
        if config["coft"]:
            limit = config["eps"] / math.sqrt(len(numbers))
            norm = float(np.linalg.norm(skew))
            if norm > limit:
                skew *= limit / norm
        if config["use_cayley_neumann"]:
            terms = config["num_cayley_neumann_terms"]
            rotation = np.eye(size)
            for power in range(1, terms):
                # The last power counts once, and so does the one behind the square of a series of three.
                rotation += (1 if power == terms - 1 and power > 2 else 2) * np.linalg.matrix_power(skew, power)
            if terms == 3:
                rotation += np.linalg.matrix_power(skew, 3)
        else:
            rotation = _cayley(skew)
        blocks.append(rotation)
    count = in_ // size
    q = np.zeros((in_, in_))
    for index in range(count):
        block = blocks[0] if config["block_share"] else blocks[index]
        q[index * size : (index + 1) * size, index * size : (index + 1) * size] = block
    return _rotated(given.weight, q.T if embedding else q, count, 8 * size + 16)


def boft(given: Given) -> Result:
    r, s = given.tensors["boft_R"], given.tensors["boft_s"].reshape(-1)
    factors, blocks, size, _ = r.shape
    n = blocks * size
    q = np.eye(n)
    for level in range(factors):
        diagonal = np.zeros((n, n))
        for index in range(blocks):
            skew = (r[level, index] - r[level, index].T) / 2
            place = slice(index * size, (index + 1) * size)
            diagonal[place, place] = _cayley(skew)
        permutation = np.eye(n)
        if factors > 1:
            run, half = size * 2**level, size // 2
            for start in range(0, n, run):
                halves = [list(range(start + at, start + at + half)) for at in range(0, run, half)]
                order = [i for part in halves[::2] for i in part] + [i for part in halves[1::2] for i in part]
                permutation[start : start + run] = np.eye(n)[order]
        q = permutation @ diagonal @ permutation.T @ q
    result = _rotated(given.weight, q, blocks, factors * (8 * size + 16))
    scale = s.reshape(-1, *(1,) * (given.weight.ndim - 1))
    return Result(result.weight * scale, result.size * np.abs(scale) * factors, result.steps)


def hra(given: Given) -> Result:
    u = given.tensors["hra_u"]
    flat = given.weight.reshape(len(given.weight), -1)
    eye = np.eye(len(u))
    if given.config["apply_GS"]:
        kept: list[Float64] = []
        for column in u.T:
            rest = column - sum((np.dot(one, column) * one for one in kept), np.zeros(len(u)))
            kept.append(rest / np.linalg.norm(rest))
        product = eye - 2 * sum((np.outer(one, one) for one in kept), np.zeros_like(eye))
    else:
        product = eye
        for column in u.T:
            unit = column / np.linalg.norm(column)
            product = product @ (eye - 2 * np.outer(unit, unit))
    result = _rotated(given.weight, product.T, 1, 0)
    # Each reflection is a sum over all inputs, of a length that does not change.
    steps = u.shape[1] * 4 + math.isqrt(len(u)) + 8
    spread = np.sqrt((flat * flat).sum(1, keepdims=True)) * u.shape[1]
    return Result(result.weight, result.size + np.broadcast_to(spread, flat.shape).reshape(given.weight.shape), steps)


def hira(given: Given) -> Result:
    t, weight = given.tensors, given.weight
    if "hira_embedding_A" in t:
        product, size = (
            (t["hira_embedding_B"] @ t["hira_embedding_A"]).T,
            (np.abs(t["hira_embedding_B"]) @ np.abs(t["hira_embedding_A"])).T,
        )
        rank = len(t["hira_embedding_A"])
    else:
        a, b = t["hira_A"], t["hira_B"]
        rank = len(a)
        product, size = (
            np.einsum("or,rf->of", of(b).reshape(len(b), -1), of(a).reshape(rank, -1)).reshape(weight.shape)
            for of in (lambda x: x, np.abs)
        )
    return Result(weight + weight * product, np.abs(weight) * (1 + size), rank + 4)


def miss(given: Given) -> Result:
    prefix = given.config["peft_type"].lower()
    block, weight = given.tensors[f"{prefix}_block"], given.weight
    out, in_ = weight.shape
    how = given.config["init_weights"]
    if how == "bat":
        r = block.shape[1]
        new, size = weight.copy(), np.abs(weight)
        for i in range(out // r):
            for j in range(in_ // r):
                here = slice(i * r, (i + 1) * r), slice(j * r, (j + 1) * r)
                new[here] = weight[here] + weight[here] @ block[i] + block[i]
                size[here] += np.abs(weight[here]) @ np.abs(block[i]) + np.abs(block[i])
        return Result(new, size, r + 4)
    tall = np.tile(block, (1, out // block.shape[1])) if how == "mini" else block
    delta = np.stack([tall[column % len(tall)] for column in range(in_)], axis=1)
    return _plus(given, delta, delta, 2)


def road(given: Given) -> Result:
    config, weight = given.config, given.weight
    theta, alpha = given.tensors["road_theta"], given.tensors["road_alpha"]
    group, variant, out = config["group_size"], config["variant"], len(weight)
    turn = np.zeros((out, out))
    for row in range(out):
        which, place = divmod(row, group)
        half = group // 2
        if variant == "road_1":
            own = other = which * half + place % half
        elif variant == "road_2":
            own = other = row
        else:
            own, other = which * 2 * group + place, which * 2 * group + group + place
        turn[row, row] = alpha[own] * math.cos(theta[own])
        if place < half:
            turn[row, row + half] = -alpha[other] * math.sin(theta[other])
        else:
            turn[row, row - half] = alpha[other] * math.sin(theta[other])
    bias = turn @ given.bias if given.bias is not None else None
    bias_size = np.abs(turn) @ np.abs(given.bias) if given.bias is not None else None
    return Result(turn @ weight, np.abs(turn) @ np.abs(weight), 8, bias, bias_size)


def delora(given: Given) -> Result:
    t = given.tensors
    a, b = t["delora_A"], t["delora_B"]
    rank = len(a)
    lengths = np.maximum(np.linalg.norm(a, axis=1), 1e-4) * np.maximum(np.linalg.norm(b, axis=0), 1e-4)
    diagonal = t["delora_lambda"][0] / rank / lengths
    delta = b @ np.diag(diagonal) @ a @ np.diag(t["delora_w_norm"])
    size = np.abs(b) @ np.diag(np.abs(diagonal)) @ np.abs(a) @ np.diag(t["delora_w_norm"])
    # torch sums squares for a length in float32, pairwise or in vectors of eight.
    return _plus(given, delta, size, rank + 8 + max(given.weight.shape) // 8)


def c3a(given: Given) -> Result:
    kernel = given.tensors["c3a_kernel"]
    m, n, b = kernel.shape
    delta, size = np.zeros((m * b, n * b)), np.zeros((m * b, n * b))
    for i in range(m):
        for j in range(n):
            for p in range(b):
                for q in range(b):
                    delta[i * b + p, j * b + q] = kernel[i, j, (q - p) % b] / (n * b)
            # PEFT goes through three Fourier transforms: an error of the kernel's length.
            size[i * b : (i + 1) * b, j * b : (j + 1) * b] = np.linalg.norm(kernel[i, j]) / (n * b)
    return _plus(given, delta, size, 8 * max(b.bit_length(), 1))


SUFFIXES: dict[str, str] = {
    "ADALORA": r"(.+)\.(lora_[ABE])",
    "LOHA": r"(.+)\.(hada_\w+)",
    "LOKR": r"(.+)\.(lokr_\w+)",
    "IA3": r"(.+)\.(ia3_l)",
    "VERA": r"(.+)\.(vera_lambda_[bd])",
    "PVERA": r"(.+)\.(pvera_lambda_[bd])",
    "OFT": r"(.+)\.(oft_\w+\.weight)",
    "BOFT": r"(.+)\.(boft_[Rs])",
    "HRA": r"(.+)\.(hra_u)",
    "HIRA": r"(.+)\.(hira_\w+)",
    "MISS": r"(.+)\.(miss_block)",
    "ROAD": r"(.+)\.(road_\w+)",
    "DELORA": r"(.+)\.(delora_\w+)",
    "C3A": r"(.+)\.(c3a_kernel)",
}
FORMULAS: dict[str, Formula] = {
    "ADALORA": adalora,
    "LOHA": loha,
    "LOKR": lokr,
    "IA3": ia3,
    "VERA": vera,
    "PVERA": vera,
    "OFT": oft,
    "BOFT": boft,
    "HRA": hra,
    "HIRA": hira,
    "MISS": miss,
    "ROAD": road,
    "DELORA": delora,
    "C3A": c3a,
}
