"""Low-rank products whose projections are drawn by a seed: VeRA and PVeRA without save_projection."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.low_rank import LowRank, low_rank
from lora_kernels.merging.updates.protocols import Inputs
from lora_kernels.numeric.dtypes import F32, decode, encode, storage
from lora_kernels.numeric.torch_generator import TorchGenerator


def load_drawn(delta: Delta, inputs: Inputs) -> LowRank:
    """factors and options: as `low_rank.load`, but for A and B, which come from torch's generator: options `seed`,
    their shapes as `A` and `B`, and `dtype`, which they are rounded to."""
    options = delta.options
    a, b = _drawn(options["seed"], options["dtype"], tuple(options["A"]), tuple(options["B"]))
    return low_rank(a, b, delta, inputs)


# One pair: all modules of an adapter share it.
@lru_cache(maxsize=1)
def _drawn(seed: int, dtype: str, *shapes: tuple[int, int]) -> list[F32]:
    """Uniform within sqrt(6 / columns), one after the other (peft 0.21.2 `vera.model._kaiming_init`)."""
    generator = TorchGenerator(seed)
    bounds = [math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns)) for _, columns in shapes]
    drawn = [generator.uniform(shape, -bound, bound) for shape, bound in zip(shapes, bounds, strict=True)]
    return [decode(encode(part, dtype, np.empty(part.shape, storage(dtype))), dtype, part) for part in drawn]
