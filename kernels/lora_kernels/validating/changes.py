"""Measurement of what a merge would change in one tensor, without writing it.

Low-rank products are measured from their factors alone. Every other type supplies the merged weights by block, as in a
merge, so that its formula exists once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from lora_kernels.linalg.factored import product_svd
from lora_kernels.linalg.spectral_norm import spectral_norm
from lora_kernels.merging.tensor import Buffers, TensorMerge
from lora_kernels.numeric.dtypes import F32, F64, decode, encode, storage

# Maximum elements of a change whose spectral norm is computed; it is held in float32 (256 MiB). Linear layers of a
# Llama of 8 billion parameters have at most 59 million.
HELD: Final = 1 << 26
# Norm of a pair that adds nothing, relative to the largest pair: float32 rounding.
DEAD: Final = 1e-6
DTYPES: Final = {"float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class TensorChange:
    """Measurements of the change of a tensor, before rounding to the output dtype.

    Args:
        norm, weight: Frobenius norms of the change and of the base tensor.
        spectral: largest singular value of the change; None for vectors, experts in one tensor, and beyond HELD.
        largest: largest absolute element after the merge; for low-rank products an upper bound, if that is within the
            range of float16.
        rank: columns of the factors; None if the change is not a low-rank product.
        dead_pairs: share of the rank that adds nothing; None like `rank`.
    """

    norm: float
    weight: float
    spectral: float | None
    largest: float
    rank: int | None = None
    dead_pairs: float | None = None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.norm) and math.isfinite(self.weight) and math.isfinite(self.largest)

    @property
    def overflows(self) -> list[str]:
        """The output dtypes that a merge would refuse, since values exceed their range."""
        return [name for name, dtype in DTYPES.items() if _beyond(self.largest, dtype)]


def measure(merge: TensorMerge) -> TensorChange:
    """Measure one touched tensor. Raises RegistryError as a merge does."""
    factors = _factors(merge)
    return _from_blocks(merge) if factors is None else _from_factors(merge, *factors)


def _factors(merge: TensorMerge) -> tuple[F64, F64] | None:
    """left (rows, r) and right (r, columns), scales included; None if the change is not a low-rank product, or if r
    exceeds the smaller side of the tensor."""
    updates = merge.updates.low_rank if merge.updates is not None else None
    if not updates or sum(update.left.shape[1] for update in updates) > min(merge.rows, merge.columns):
        return None
    left = np.hstack([float(update.scale) * update.left.astype(np.float64) for update in updates])
    return left, np.vstack([update.right.astype(np.float64) for update in updates])


def _from_factors(merge: TensorMerge, left: F64, right: F64) -> TensorChange:
    singular = product_svd(left, right).singular
    pairs = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=1)
    longest = float(pairs.max(initial=0.0))
    squares, largest = _weight(merge)
    # Cauchy-Schwarz bounds the elements of the product. Only a bound beyond float16 needs the elements themselves.
    bound = largest + float(np.linalg.norm(left, axis=1).max() * np.linalg.norm(right, axis=0).max())
    if _beyond(bound, DTYPES["float16"]):
        bound = _from_blocks(merge, spectral=False).largest
    return TensorChange(
        norm=float(np.linalg.norm(singular)),
        weight=math.sqrt(squares),
        spectral=float(singular[0]) if singular.size else 0.0,
        largest=bound,
        rank=len(pairs),
        dead_pairs=float((pairs <= DEAD * longest).mean()) if longest > 0 else 1.0,
    )


def _from_blocks(merge: TensorMerge, *, spectral: bool = True) -> TensorChange:
    matrix = merge.tensor.columns is None and min(merge.rows, merge.columns) > 1
    hold = spectral and matrix and merge.rows * merge.columns <= HELD
    held = np.empty((merge.rows, merge.columns), np.float32) if hold else None
    squares, weights, largest = [0.0], [0.0], 0.0
    for block, weight, change, new in merge.merged(0, merge.rows, Buffers()):
        assert change is not None
        squares.append(_square(change))
        weights.append(_square(weight))
        largest = max(largest, _largest(new))
        if held is not None:
            held.reshape(-1)[block.first : block.first + block.elements] = change.reshape(-1)
    norm = math.sqrt(math.fsum(squares))
    return TensorChange(
        norm=norm,
        weight=math.sqrt(math.fsum(weights)),
        spectral=spectral_norm(held, name=merge.tensor.name) if held is not None else None,
        largest=largest,
    )


def _weight(merge: TensorMerge) -> tuple[float, float]:
    """Sum of squares of the base's values, and their largest magnitude."""
    squares, largest = [0.0], 0.0
    for _, weight in merge.before(Buffers()):
        squares.append(_square(weight))
        largest = max(largest, _largest(weight))
    return math.fsum(squares), largest


def _square(values: F32) -> float:
    """Sum of squares in float64: in float32, squares overflow or underflow long before the values do."""
    wide = values.reshape(-1).astype(np.float64)
    return float(np.dot(wide, wide))


def _largest(values: F32) -> float:
    """The largest magnitude; NaN if a value is NaN."""
    return float(np.max(np.abs(values), initial=0.0))


def _beyond(value: float, dtype: str) -> bool:
    """Whether rounding to the dtype makes a value infinite."""
    one = np.array([value], np.float32)
    return not np.isfinite(decode(encode(one, dtype, np.empty(1, storage(dtype))), dtype, one))[0]
