"""Low-rank products whose factors are put together while loading: RandLoRA, VB-LoRA, Uni-LoRA, TinyLoRA."""

from __future__ import annotations

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.low_rank import LowRank, low_rank
from lora_kernels.merging.updates.protocols import Inputs
from lora_kernels.merging.updates.wide import WideLowRank
from lora_kernels.numeric.dtypes import F32, F64, Indices


def load_many_bases(delta: Delta, inputs: Inputs) -> WideLowRank:
    """factors: A (r, 1 or n, small), B (large, n, r), lambda (r, n), gamma (n, small). options: `large`: rows of B that
    are used; `turned`: the product is added transposed.

    PEFT counts the ranks of A before its bases and those of B behind, so that they meet in another order than the
    paper's; adapters are trained with that product.
    """

    def read(name: str) -> F64:
        return inputs.reader.load(delta.factors[name]).astype(np.float64)

    factors, bases = read("lambda"), read("gamma")
    rank, count = factors.shape
    small = bases.shape[1]
    a = read("A")[:, :count, :small] * factors[:, :, None] * bases[None]
    b = read("B")[: delta.options["large"], :count]
    right, left = a.reshape(rank * count, small), b.reshape(len(b), count * rank)
    if delta.options.get("turned"):
        left, right = right.T, left.T
    return WideLowRank(left, right, delta.scale)


def load_bank(delta: Delta, inputs: Inputs) -> LowRank:
    """factors: bank (vectors, length), and A (r, in / length, vectors) and B (out / length, r, vectors), the logits of
    which the `top` largest count; or A_weights, B_weights (.., .., top - 1), A_places, B_places (.., .., top)."""
    bank = inputs.reader.load(delta.factors["bank"]).astype(np.float64)

    def mixed(half: str) -> F64:
        if half in delta.factors:
            weights, places = _largest(inputs.reader.load(delta.factors[half]), delta.options["top"])
        else:
            stored = inputs.reader.load(delta.factors[f"{half}_weights"]).astype(np.float64)
            weights = np.concatenate([stored, 1 - stored.sum(-1, keepdims=True)], axis=-1)
            places = inputs.reader.indices(delta.factors[f"{half}_places"], [len(bank)])
        # One vector after the other: all at once would be as large as `top` times the factor.
        total = np.zeros((*places.shape[:2], bank.shape[1]))
        for place in range(places.shape[2]):
            total += weights[:, :, place, None] * bank[places[:, :, place]]
        return total

    a, b = mixed("A"), mixed("B").transpose(0, 2, 1)
    a, b = a.reshape(len(a), -1), b.reshape(-1, b.shape[2])
    return low_rank(a.astype(np.float32), b.astype(np.float32), delta, inputs)


def load_indexed(delta: Delta, inputs: Inputs) -> LowRank:
    """factors: numbers (n); for A and B, their places among these and their scales."""
    numbers = inputs.reader.load(delta.factors["numbers"])

    def half(name: str) -> F32:
        places = inputs.reader.indices(delta.factors[f"{name}_places"], [len(numbers)])
        return numbers[places] * inputs.reader.load(delta.factors[f"{name}_scales"])

    return low_rank(half("A"), half("B"), delta, inputs)


def load_tiny(delta: Delta, inputs: Inputs) -> LowRank:
    """factors: A (r, in), B (out, r), P (u, r, r), v (u): B (sum_i v_i P_i) A."""
    a, b, p, v = (inputs.reader.load(delta.factors[name]).astype(np.float64) for name in ("A", "B", "P", "v"))
    core = np.tensordot(v, p, axes=1)
    return low_rank((core @ a).astype(np.float32), b.astype(np.float32), delta, inputs)


def _largest(logits: F32, top: int) -> tuple[F64, Indices]:
    """Softmax over the largest ones; of equal ones the first in the file count."""
    places = np.argsort(-logits, axis=-1, kind="stable")[..., :top]
    chosen = np.take_along_axis(logits, places, axis=-1).astype(np.float64)
    weights = np.exp(chosen - chosen.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True), places.astype(np.int64)
