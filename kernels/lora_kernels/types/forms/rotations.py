"""Rotations of a weight on the input side: OFT, BOFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.late import np
from lora_kernels.types.updates import Reach, Transform

if TYPE_CHECKING:
    from lora_kernels.numeric.dtypes import F32, F64, Indices


class Rotation(NamedTuple):
    """P D P^T. blocks: of D, (n, b, b), or (1, b, b) for n equal blocks. order: (P x)[i] = x[order[i]]; None for
    P = I."""

    blocks: F64
    order: Indices | None = None


class Rotate(Transform):
    """Each row w becomes Q w, Q the product of the rotations, the first one applied first; then rows are scaled. In
    float64: an element is a sum over a block, whose terms may be many times larger and cancel."""

    reach: ClassVar[Reach] = "row"

    def __init__(self, rotations: Sequence[Rotation], scale: F32 | None = None) -> None:
        self._rotations = rotations
        self._scale = scale

    def apply(self, block: Block, values: F32) -> None:
        rows = values.astype(np.float64)
        for rotation in self._rotations:
            rows = _rotate(rotation, rows)
        if self._scale is not None:
            rows *= self._scale[block.r0 : block.r1, None]
        np.copyto(values, rows, casting="same_kind")


def _rotate(rotation: Rotation, rows: F64) -> F64:
    """Q w for every row w."""
    blocks, order = rotation
    inner = rows if order is None else np.empty_like(rows)
    if order is not None:
        inner[:, order] = rows
    size = blocks.shape[1]
    parts = inner.reshape(len(rows), -1, size).transpose(1, 0, 2)
    rotated: F64 = np.matmul(parts, blocks.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(rows.shape)
    return rotated if order is None else rotated[:, order]


def skew_blocks(numbers: F32, size: int) -> F64:
    """The skew-symmetric matrices of upper triangles, which are stored row by row."""
    matrices = np.zeros((numbers.shape[0], size, size))
    rows, columns = np.triu_indices(size, 1)
    matrices[:, rows, columns] = numbers
    return matrices - matrices.transpose(0, 2, 1)


def project(skew: F64, eps: float) -> F64:
    """COFT: limit the Frobenius norm of each block to eps / sqrt(blocks)."""
    limit = eps / np.sqrt(skew.shape[0])
    norms = np.sqrt((skew * skew).sum((1, 2), keepdims=True))
    projected: F64 = np.where(norms <= limit, skew, skew * (limit / np.where(norms == 0, 1, norms)))
    return projected


def cayley(skew: F64) -> F64:
    """(I - S) (I + S)^-1; I + S has an inverse for every skew-symmetric S."""
    eye = np.eye(skew.shape[1])
    # S is skew-symmetric: (I + S)^T = I - S, and vice versa.
    solved: F64 = np.linalg.solve(eye - skew, eye + skew).astype(np.float64, copy=False)
    return solved.transpose(0, 2, 1)


def neumann(skew: F64, terms: int) -> F64:
    """I + 2 S + 2 S^2 + ... + S^(terms - 1), the last power once: the series of (I - S) (I + S)^-1 for -S as truncated
    by PEFT; I + 2 S for two terms, I for fewer. Three terms give the same as four."""
    result = np.broadcast_to(np.eye(skew.shape[1]), skew.shape).copy()
    if terms <= 1:
        return result
    result += 2 * skew
    if terms == 2:
        return result
    power = skew @ skew
    result += 2 * power
    for _ in range(3, terms - 1):
        power = power @ skew
        result += 2 * power
    return result + power @ skew


def butterfly(blocks: int, size: int, level: int) -> Indices:
    """The permutation of the `level`-th factor: within each run of 2^(level + 1) half-blocks, the even halves come
    before the odd ones."""
    half = size // 2
    run = 2 * half * (1 << level)
    halves = np.arange(run // half)
    within = np.concatenate([halves[::2], halves[1::2]])[:, None] * half + np.arange(half)
    starts = np.arange(0, blocks * size, run)
    order: Indices = (starts[:, None] + within.reshape(-1)).reshape(-1)
    return order
