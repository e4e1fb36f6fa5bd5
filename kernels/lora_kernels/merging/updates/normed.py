"""A low-rank product of columns and rows of length one: DeLoRA."""

from __future__ import annotations

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.low_rank import LowRank, low_rank
from lora_kernels.merging.updates.protocols import Inputs
from lora_kernels.numeric.dtypes import F32, F64


def load(delta: Delta, inputs: Inputs) -> LowRank:
    """factors: A, B, `columns` as for low-rank; `lambda`: divided by r it is the length of each term."""
    a, b = (inputs.reader.load(delta.factors[half]) for half in ("A", "B"))
    strength = float(inputs.reader.load(delta.factors["lambda"])[0])
    length = strength / a.shape[0] / (_lengths(a, 1) * _lengths(b, 0))
    return low_rank((a * length[:, None]).astype(np.float32), b, delta, inputs)


def _lengths(values: F32, axis: int) -> F64:
    lengths: F64 = np.maximum(np.sqrt(np.square(values.astype(np.float64)).sum(axis)), 1e-4)
    return lengths
