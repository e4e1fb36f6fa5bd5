"""Low-rank products made from a first look at the weight: DEFT, PEANuT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Inputs
from lora_kernels.merging.updates.wide import WideLowRank
from lora_kernels.numeric.dtypes import F64

_ACTIVATIONS: Final[Mapping[str, Callable[[F64], npt.NDArray[Any]]]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
    "silu": lambda x: x * 0.5 * (1 + np.tanh(0.5 * x)),
    "swish": lambda x: x * 0.5 * (1 + np.tanh(0.5 * x)),
    "tanh": np.tanh,
}


def load_deft(delta: Delta, inputs: Inputs) -> WideLowRank:
    """factors: P (out, r), R (r, in), absent where a subspace is only removed. options: method, "qr" or "relu"; inject:
    factor of R; transposed. The adapter's weight is `delta.weight`: the update is linear in it."""
    options = delta.options
    left = inputs.reader.load(delta.factors["P"]).astype(np.float64)
    if options["method"] == "qr":
        left = np.linalg.qr(left)[0].astype(np.float64, copy=False)
        right = left
    else:
        right = np.maximum(left, 0)
    made = -_product(right.T, inputs, transposed=bool(options.get("transposed")))
    if "R" in delta.factors:
        made += options["inject"] * inputs.reader.load(delta.factors["R"]).astype(np.float64)
    return _wide(left, made, delta)


def load_peanut(delta: Delta, inputs: Inputs) -> WideLowRank:
    """factors: A (r, out), B (out, r), encoder and decoder 0 to depth - 1 (r, r). options: depth; act; scale."""
    read = {name: inputs.reader.load(factor).astype(np.float64) for name, factor in delta.factors.items()}
    act = _ACTIVATIONS[delta.options["act"]]
    depth = delta.options["depth"]
    hidden = act(_product(read["A"], inputs, transposed=False))
    kept = []
    for index in range(depth):
        kept.append(hidden)
        hidden = act(read[f"encoder{index}"] @ hidden)
    for index in range(depth):
        hidden = act(read[f"decoder{index}"] @ hidden) + kept[depth - 1 - index]
    return _wide(read["B"], delta.options["scale"] * hidden, delta)


def _product(left: F64, inputs: Inputs, *, transposed: bool) -> F64:
    """left @ W for W (out, in), which is stored (in, out) where transposed."""
    columns = []
    total: F64 | None = None
    for block, values in inputs.before():
        wide = values.astype(np.float64)
        if transposed:
            columns.append(left @ wide.T)
        else:
            part = left[:, block.r0 : block.r1] @ wide
            total = part if total is None else total + part
    result: F64 = np.concatenate(columns, axis=1) if total is None else total
    return result


def _wide(left: F64, right: F64, delta: Delta) -> WideLowRank:
    if delta.options.get("transposed"):
        left, right = right.T, left.T
    return WideLowRank(left, right, delta.weight)
