"""What a merge would change in one tensor, measured without writing it.

Products of low rank are measured from their factors alone. Every other type is asked for the merged weights, block by
block, as a merge asks for them, so that its formula stands in one place.
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

# Elements of a change that is held in float32 (256 MiB) for its spectral norm: more than linear layers of a Llama of
# 8 billion parameters have (59 million at most). Larger ones have none.
HELD: Final = 1 << 26
# Of the length of the largest pair: what float32 makes of a pair that adds nothing.
DEAD: Final = 1e-6
DTYPES: Final = {"float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class TensorChange:
    """norm, weight: Frobenius norms of what is changed and of the base's tensor, not rounded. spectral: largest
    singular value of the change; None for vectors, for experts in one tensor, and beyond HELD. rank: columns of the
    factors, where the change is a product of such, and dead_pairs: the share of them that adds nothing. largest: of
    the absolute elements after the merge, before they are rounded to a type; of a product of factors a bound, where
    that is within the range of float16."""

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
        """The output types that a merge would refuse for values beyond their range."""
        return [name for name, dtype in DTYPES.items() if _beyond(self.largest, dtype)]


def measure(merge: TensorMerge) -> TensorChange:
    """Look at one touched tensor. Raises RegistryError as a merge does."""
    factors = _factors(merge)
    return _from_blocks(merge) if factors is None else _from_factors(merge, *factors)


def _factors(merge: TensorMerge) -> tuple[F64, F64] | None:
    """left (rows, r) and right (r, columns), scales included; None if the change is not such a product, or of more
    ranks than the tensor has."""
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
    # Cauchy-Schwarz: no element of the product is larger. Only where that does not say enough, the sums are formed.
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
    """Sum of squares of the base's values, and the largest of them."""
    squares, largest = [0.0], 0.0
    for _, weight in merge.before(Buffers()):
        squares.append(_square(weight))
        largest = max(largest, _largest(weight))
    return math.fsum(squares), largest


def _square(values: F32) -> float:
    """Each square in float64: in float32 they leave the range long before the values do."""
    wide = values.reshape(-1).astype(np.float64)
    return float(np.dot(wide, wide))


def _largest(values: F32) -> float:
    """NaN where one is."""
    return float(np.max(np.abs(values), initial=0.0))


def _beyond(value: float, dtype: str) -> bool:
    """Whether rounding to the type makes it infinite."""
    one = np.array([value], np.float32)
    return not np.isfinite(decode(encode(one, dtype, np.empty(1, storage(dtype))), dtype, one))[0]
