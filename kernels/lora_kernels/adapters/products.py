"""LoHa and LoKr as exact plain products b @ a of a higher rank.

A Hadamard product of two products of rank r is a product of rank r^2, whose factors are the products of all pairs of
columns and of rows; a Kronecker product of products is the product of the Kronecker products of their factors. The
elements of the factors are products of two stored values, rounded once to float32.

LoHa: Hyeon-Woo et al., arXiv 2108.06098. LoKr: Edalati et al., arXiv 2212.10650; Yeh et al., arXiv 2309.14859.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lora_kernels.numeric.dtypes import F32


def hadamard(factors: Mapping[str, F32]) -> tuple[F32, F32]:
    """a (r^2, in) and b (out, r^2) of (w1_a @ w1_b) * (w2_a @ w2_b). factors: by suffix, `hada_w1_a` (out, r) and
    `hada_w1_b` (r, in), likewise for w2; the ranks may differ."""
    b = factors["hada_w1_a"][:, :, None] * factors["hada_w2_a"][:, None, :]
    a = factors["hada_w1_b"][:, None, :] * factors["hada_w2_b"][None, :, :]
    return a.reshape(-1, a.shape[2]), b.reshape(len(b), -1)


def kronecker(factors: Mapping[str, F32]) -> tuple[F32, F32]:
    """a and b of w1 (x) w2. factors: by suffix, `lokr_w1`, or `lokr_w1_a` and `lokr_w1_b`, likewise for w2."""
    (left1, right1), (left2, right2) = (_halves(factors, name) for name in ("lokr_w1", "lokr_w2"))
    return np.kron(right1, right2), np.kron(left1, left2)


def _halves(factors: Mapping[str, F32], name: str) -> tuple[F32, F32]:
    """Two factors of w1 or w2. A whole matrix is factored with the identity, on its smaller side."""
    whole = factors.get(name)
    if whole is None:
        return factors[f"{name}_a"], factors[f"{name}_b"]
    rows, columns = whole.shape
    if rows < columns:
        return np.eye(rows, dtype=np.float32), whole
    return whole, np.eye(columns, dtype=np.float32)
