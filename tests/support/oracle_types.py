"""What a merge of the types beside LoRA must give: dense float64 formulas, one for each, in numpy alone.

Written from the papers' and PEFT's formulas, one whole matrix at a time, sharing no code with what is under test. A
formula gives the new weight and a bound, per element, on how far float32 arithmetic may lie from it.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.support.oracle import FLOAT32_UNIT, Merged, read_checkpoint, round_bf16

Float64 = NDArray[np.float64]
Tensors = dict[str, Float64]
Places = Callable[[int, int], NDArray[np.int64]]
_DTYPES = {"F32": "<f4", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


class Given(NamedTuple):
    """A module: its tensors by suffix, the model-level ones, its weight as (out, in…), its bias, the config. places:
    the first of a seeded permutation: size, number -> places."""

    module: str
    tensors: Tensors
    shared: Tensors
    weight: Float64
    bias: Float64 | None
    config: dict[str, Any]
    places: Places | None


class Result(NamedTuple):
    """None for a bias that stays. size: magnitude that the error of one rounding is relative to; steps: roundings."""

    weight: Float64
    size: Float64
    steps: int
    bias: Float64 | None = None
    bias_size: Float64 | None = None


Formula = Callable[[Given], Result]


def merge_types(
    base_dir: Path,
    adapters: list[tuple[Path, float]],
    stored_transposed: tuple[str, ...] = (),
    places: Places | None = None,
    drawn: Tensors | None = None,
) -> dict[str, Merged]:
    """The tensors of the base that the adapters change, one adapter after the other. stored_transposed: ends of the
    names of modules whose weight is stored (in, out). places, drawn: what the adapters' files name by a seed alone."""
    base = read_checkpoint(base_dir)
    now = dict(base)
    error = {name: np.zeros_like(values) for name, values in base.items()}
    touched: set[str] = set()
    for folder, share in adapters:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = _read(folder / "adapter_model.safetensors")
        modules, shared = _by_module(tensors, config["peft_type"])
        for module, own in modules.items():
            name, turn = f"{module}.weight", module.endswith(stored_transposed) if stored_transposed else False
            weight = now[name].T if turn else now[name]
            result = FORMULAS[config["peft_type"]](
                Given(module, own, {**(drawn or {}), **shared}, weight, now.get(f"{module}.bias"), config, places)
            )
            parts = []
            if result.weight is not weight:
                parts.append((name, result.weight.T if turn else result.weight, result.size.T if turn else result.size))
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


def _read(path: Path) -> Tensors:
    """Every tensor of an adapter's file, indices too."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).astype(float)
    return tensors


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


def fourierft(given: Given) -> Result:
    spectrum = given.tensors["fourierft_spectrum"]
    out, in_ = given.weight.shape
    dense = np.zeros(out * in_)
    dense[_places(given, len(spectrum))] = spectrum
    delta = np.fft.ifft2(dense.reshape(out, in_)).real * given.config["scaling"]
    size = np.full_like(delta, given.config["scaling"] * np.linalg.norm(spectrum) / (out * in_))
    return _plus(given, delta, size, 8 * (out * in_).bit_length())


def waveft(given: Given) -> Result:
    spectrum = given.tensors["waveft_spectrum"]
    out, in_ = given.weight.shape
    rows, columns = np.divmod(_places(given, len(spectrum)), in_)
    dense = np.zeros((out + out % 2, in_ + in_ % 2))
    dense[rows, columns] = spectrum
    if given.config["use_idwt"]:
        assert given.config["wavelet_family"] == "db1"
        # One level of Haar's transform, back: averages and differences along the rows, then along the columns. What
        # stands beside the averages are differences of rows, as pywt names them, and below them of columns.
        half = dense.shape[0] // 2, dense.shape[1] // 2
        beside, below = dense[: half[0], half[1] :].copy(), dense[half[0] :, : half[1]].copy()
        dense[: half[0], half[1] :], dense[half[0] :, : half[1]] = below, beside
        for _ in range(2):
            low, high = np.split(dense, 2)
            dense = np.stack([low + high, low - high], axis=1).reshape(dense.shape).T / math.sqrt(2)
    delta = dense[:out, :in_] * given.config["scaling"]
    return _plus(given, delta, np.abs(spectrum).max() * given.config["scaling"] * np.ones_like(delta), 12)


def _places(given: Given, count: int) -> NDArray[np.int64]:
    assert given.places is not None
    return given.places(math.prod(given.weight.shape), count)


def shira(given: Given) -> Result:
    delta = np.zeros_like(given.weight)
    for row, column, value in zip(*given.tensors["shira_indices"], given.tensors["shira_weight"], strict=True):
        delta[int(row), int(column)] += value
    return _plus(given, delta, delta, 2)


def supertuning(given: Given) -> Result:
    t = given.tensors
    delta = np.zeros(given.weight.size)
    for place, value in zip(t["supertuning_indices"], t["supertuning_values"], strict=True):
        delta[int(place)] += value
    delta = delta.reshape(given.weight.shape)
    size = np.abs(delta)
    if given.config["r"]:
        a, b = t["supertuning_lora_A.weight"], t["supertuning_lora_B.weight"]
        scale = given.config["lora_alpha"] / given.config["r"]
        delta, size = delta + scale * (b @ a), size + scale * (np.abs(b) @ np.abs(a))
    return _plus(given, delta, size, (given.config["r"] or 0) + 5)


def gralora(given: Given) -> Result:
    t, config = given.tensors, given.config
    a, b = t["gralora_A"], t["gralora_B"]
    k, width, r = a.shape
    height, part = b.shape[2], r // k
    delta, size = np.zeros_like(given.weight), np.zeros_like(given.weight)
    for j in range(k):
        for n in range(k):
            here = slice(j * height, (j + 1) * height), slice(n * width, (n + 1) * width)
            up, down = b[j, n * part : (n + 1) * part], a[n, :, j * part : (j + 1) * part]
            delta[here], size[here] = (down @ up).T, (np.abs(down) @ np.abs(up)).T
    if config["hybrid_r"]:
        up, down = t["gralora_B_general.weight"], t["gralora_A_general.weight"]
        delta, size = delta + up @ down, size + np.abs(up) @ np.abs(down)
    scale = config["alpha"] / (r + config["hybrid_r"])
    return _plus(given, scale * delta, scale * size, r + config["hybrid_r"] + 6)


def deft(given: Given) -> Result:
    config, weight = given.config, given.weight
    p = given.tensors["deft_P"]
    left = right = p
    if config["decomposition_method"] == "qr":
        columns: list[Float64] = []
        for column in p.T:
            rest = column
            for _ in range(2):
                rest = rest - sum((np.dot(one, rest) * one for one in columns), np.zeros(len(p)))
            # Householder's method, which libraries use, makes R's diagonal negative for positive first entries.
            columns.append(rest / np.linalg.norm(rest))
        left = right = np.stack(columns, axis=1) * np.sign(np.diag(np.linalg.qr(p)[1]))
    else:
        right = np.maximum(p, 0)
    scale = config["alpha"] / p.shape[1] if config["alpha"] else 1.0
    injected = np.zeros((p.shape[1], weight.shape[1])) if config["para"] else scale * given.tensors["deft_R"]
    delta = left @ (injected - right.T @ weight)
    # An error of the orthonormal columns is one of their length, whatever the size of an element.
    length = np.linalg.norm(injected, axis=0) + np.linalg.norm(weight, axis=0)
    size = np.abs(left) @ (np.abs(injected) + np.abs(right).T @ np.abs(weight)) + length
    return _plus(given, delta, size, p.shape[1] + 2 * math.isqrt(len(p)) + 16)


def peanut(given: Given) -> Result:
    config, t = given.config, given.tensors
    act = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}[
        config["act_fn"]
    ]
    hidden, size = given.weight.T @ t["peanut_A.weight"].T, np.abs(given.weight.T) @ np.abs(t["peanut_A.weight"].T)
    hidden = act(hidden)
    kept = []
    for index in range(config["depth"]):
        kept.append((hidden, size))
        layer = t[f"peanut_encoders.{index}.weight"]
        hidden, size = act(hidden @ layer.T), (size + np.abs(hidden)) @ np.abs(layer.T)
    for index in range(config["depth"]):
        layer = t[f"peanut_decoders.{index}.weight"]
        before, before_size = kept[-1 - index]
        hidden, size = act(hidden @ layer.T) + before, (size + np.abs(hidden)) @ np.abs(layer.T) + before_size
    up = t["peanut_B.weight"]
    delta = config["scaling"] * (hidden @ up.T).T
    size = config["scaling"] * ((size + np.abs(hidden) + 1) @ np.abs(up.T)).T
    return _plus(given, delta, size, len(given.weight) // 4 + 4 * config["depth"] + 16)


def glora(given: Given) -> Result:
    t = given.tensors

    def path(name: str) -> tuple[Float64, Float64]:
        if f"glora_{name}.Xd" in t:
            down, up = t[f"glora_{name}.Xd"], t[f"glora_{name}.Xu"]
            return down @ up, np.abs(down) @ np.abs(up)
        values = t.get(f"glora_{name}.X", np.zeros(1))
        return values, np.abs(values)

    (a, a_size), (b, b_size), (d, d_size), (e, e_size) = (path(name) for name in "ABDE")
    weight, bias = given.weight, given.bias
    new, size = weight + weight * a + b, np.abs(weight) * (1 + a_size) + b_size
    if bias is None or given.config["config_D_E"] == "none":
        return Result(new, size, given.config["r"] + 5)
    return Result(new, size, given.config["r"] + 5, bias + bias * d + e, np.abs(bias) * (1 + d_size) + e_size)


def vblora(given: Given) -> Result:
    bank, top = given.shared["vblora_vector_bank"], given.config["topk"]

    def half(name: str) -> Float64:
        logits = given.tensors.get(f"vblora_logits_{name}")
        if logits is None:
            first = given.tensors[f"vblora_logits_{name}_topk_weights"]
            places = given.tensors[f"vblora_logits_{name}_topk_indices"].astype(int)
            weights = np.concatenate([first, 1 - first.sum(-1, keepdims=True)], -1)
        else:
            places = np.argsort(logits, axis=-1)[..., ::-1][..., :top]
            chosen = np.exp(np.take_along_axis(logits, places, -1))
            weights = chosen / chosen.sum(-1, keepdims=True)
        return (weights[..., None] * bank[places]).sum(-2)

    a, b = half("A"), half("B").transpose(0, 2, 1)
    a, b = a.reshape(len(a), -1), b.reshape(-1, b.shape[2])
    largest = np.abs(bank).max()
    size = (np.abs(b) + largest) @ (np.abs(a) + largest)
    return _plus(given, b @ a, size, len(a) + 4 * top + 8)


def unilora(given: Given) -> Result:
    t, numbers = given.tensors, given.shared["unilora_theta_d"]
    a, b = (numbers[t[f"unilora_indices_{half}"].astype(int)] * t[f"unilora_scales_{half}"] for half in "AB")
    return _plus(given, b @ a, np.abs(b) @ np.abs(a), len(a) + 5)


def randlora(given: Given) -> Result:
    t, config = given.tensors, given.config
    out, in_ = given.weight.shape
    small, large, count = min(out, in_), max(out, in_), t["randlora_lambda"].shape[1]
    a = given.shared["randlora_A"][:, :count, :small]
    b = given.shared["randlora_B"][:large, :count]
    scaled = np.einsum("rn,rjs,ns->rns", t["randlora_lambda"], a, t["randlora_gamma"])
    right, left = scaled.reshape(-1, small), b.reshape(large, -1)
    scale = config["randlora_alpha"] / config["r"]
    delta, size = scale * (left @ right), scale * (np.abs(left) @ np.abs(right))
    return _plus(given, *((delta, size) if small == in_ else (delta.T, size.T)), len(right) + 6)


def tinylora(given: Given) -> Result:
    t = given.tensors
    (v,) = given.shared.values()
    core, core_size = np.einsum("i,ijk->jk", v, t["tinylora_P"]), np.einsum("i,ijk->jk", abs(v), abs(t["tinylora_P"]))
    delta = t["tinylora_B"] @ core @ t["tinylora_A"]
    size = np.abs(t["tinylora_B"]) @ core_size @ np.abs(t["tinylora_A"])
    return _plus(given, delta, size, len(v) + 2 * len(core) + 6)


def ln_tuning(given: Given) -> Result:
    new, bias = given.tensors["ln_tuning_layers.weight"], given.tensors.get("ln_tuning_layers.bias")
    return Result(new, np.abs(new), 0, bias, np.abs(bias) if bias is not None else None)


def beft(given: Given) -> Result:
    assert given.bias is not None
    bias = given.bias + given.tensors["beft_bias"].reshape(-1)
    size = np.abs(given.bias) + np.abs(given.tensors["beft_bias"].reshape(-1))
    return Result(given.weight, np.abs(given.weight), 0, bias, size)


def poly(given: Given) -> Result:
    a, b = given.tensors["poly_lora_A"], given.tensors["poly_lora_B"]
    logits = given.tensors["poly_router.module_logits"].reshape(a.shape[:2])
    shares = 1 / (1 + np.exp(-logits))
    shares = shares / (shares.sum(1, keepdims=True) + 1e-12)

    def update(of: Callable[[Float64], Float64]) -> Float64:
        down = np.concatenate([np.tensordot(shares[q], of(a[q]), axes=1) for q in range(len(a))])
        up = np.concatenate([np.tensordot(shares[q], of(b[q]), axes=1) for q in range(len(b))], axis=1)
        return (down @ up).T / a.shape[3]

    return _plus(given, update(lambda x: x), update(np.abs), a.shape[3] + 2 * a.shape[1] + 6)


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
    "BEFT": r"(.+)\.(beft_bias)",
    "C3A": r"(.+)\.(c3a_kernel)",
    "FOURIERFT": r"(.+)\.(fourierft_spectrum)",
    "WAVEFT": r"(.+)\.(waveft_spectrum)",
    "SHIRA": r"(.+)\.(shira_\w+)",
    "SUPERTUNING": r"(.+)\.(supertuning_[\w.]+)",
    "GRALORA": r"(.+)\.(gralora_[\w.]+)",
    "DEFT": r"(.+)\.(deft_[PR])",
    "PEANUT": r"(.+)\.(peanut_[\w.]+)",
    "GLORA": r"(.+)\.(glora_[\w.]+)",
    "VBLORA": r"(.+)\.(vblora_\w+)",
    "UNILORA": r"(.+)\.(unilora_\w+)",
    "RANDLORA": r"(.+)\.(randlora_\w+)",
    "TINYLORA": r"(.+)\.(tinylora_\w+)",
    "LN_TUNING": r"(.+)\.(ln_tuning_layers\.\w+)",
    "POLY": r"(.+)\.(poly_[\w.]+)",
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
    "BEFT": beft,
    "C3A": c3a,
    "FOURIERFT": fourierft,
    "WAVEFT": waveft,
    "SHIRA": shira,
    "SUPERTUNING": supertuning,
    "GRALORA": gralora,
    "DEFT": deft,
    "PEANUT": peanut,
    "GLORA": glora,
    "VBLORA": vblora,
    "UNILORA": unilora,
    "RANDLORA": randlora,
    "TINYLORA": tinylora,
    "LN_TUNING": ln_tuning,
    "POLY": poly,
}
