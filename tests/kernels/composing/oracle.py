"""The methods on dense updates in float64, written from the papers' formulas, and bounds of float32's errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.kernels.composing.peft_models import Factors

F64 = NDArray[np.float64]
UNIT = 2.0**-24


class Input(NamedTuple):
    """One adapter in one module: b with its scale, a."""

    weight: float
    b: F64
    a: F64

    @property
    def delta(self) -> F64:
        return self.b @ self.a


def present(loaded: Sequence[Factors], weights: Sequence[float], module: str) -> list[Input]:
    return [Input(w, *found[module]) for w, found in zip(weights, loaded, strict=True) if module in found]


def arithmetic_error(inputs: Sequence[Input]) -> float:
    """Norm of the error of sum w_i D_i in float32: a product of r summands and its scale, a weight, a sum, a quotient."""
    summands = max(part.a.shape[0] for part in inputs) + len(inputs) + 6
    room = sum(abs(part.weight) * (np.abs(part.b) @ np.abs(part.a)) for part in inputs)
    return float(summands * UNIT * np.linalg.norm(room))


def truncated(exact: F64, rank: int) -> F64:
    u, s, v = np.linalg.svd(exact, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def cut_bound(exact: F64, error: float, rank: int) -> float:
    """How far the best approximation at a rank may move when the matrix moves by `error`: the subspaces turn by the
    error over the gap between the singular values on either side of the cut (Wedin 1972), and both factors are rounded
    to float32."""
    s = np.linalg.svd(exact, compute_uv=False)
    turn = 0.0 if rank >= len(s) else 2 * np.sqrt(2) * s[0] / (s[rank - 1] - s[rank])
    return float((1 + turn) * error + 2 * UNIT * np.linalg.norm(s[:rank]))


def merged(
    method: str,
    inputs: Sequence[Input],
    *,
    density: float = 1.0,
    majority_sign_method: str = "total",
    masks: Sequence[NDArray[np.bool_]] = (),
) -> F64:
    deltas = np.stack([part.delta for part in inputs])
    weights = np.array([part.weight for part in inputs])[:, None, None]
    if method in ("ties", "magnitude_prune"):
        deltas = np.stack([trimmed(delta, density) for delta in deltas])
    elif method.startswith("dare"):
        deltas = deltas * np.reshape(masks, deltas.shape) / density
    if method.endswith("ties"):
        return elected(deltas, weights, majority_sign_method)
    return (weights * deltas).sum(axis=0)


def trimmed(values: F64, density: float) -> F64:
    count = int(density * values.size)
    return np.where(np.abs(values) >= np.sort(np.abs(values), axis=None)[::-1][count - 1], values, 0)


def elected(values: F64, weights: F64, majority: str = "total") -> F64:
    votes = (values if majority == "total" else np.sign(values)).sum(axis=0)
    agree = np.sign(values) == np.where(votes >= 0, 1, -1)
    return (weights * values * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
