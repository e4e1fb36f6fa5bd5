"""torch's CPU generator without torch, for projections and indices that an adapter stores only as a seed.

`torch.Generator("cpu")` is a Mersenne Twister (MT19937) seeded by one number, which numpy implements too. Results are
bitwise equal to those of torch 2.13 on a processor with fused multiply-add, which torch's `uniform_` uses.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.numeric.dtypes import F32, Indices

# From this size on torch draws 64 bits per step of a permutation.
_LARGE_PERMUTATION: Final = (2**32 - 1) // 20
# The intermediate int64 and float64 numbers take several times the memory of the float32 result.
_CHUNK: Final = 1 << 18


class TorchGenerator:
    """`torch.Generator("cpu").manual_seed(seed)`."""

    def __init__(self, seed: int) -> None:
        # torch keeps 32 bits of the seed. Only the legacy class uses MT19937's own seeding.
        self._bits = np.random.RandomState(seed & 0xFFFFFFFF)  # noqa: NPY002

    def uniform(self, shape: tuple[int, ...], low: float, high: float) -> F32:
        """`torch.empty(shape).uniform_(low, high)` in float32: 24 bits of each draw, one rounding."""
        result = np.empty(shape, np.float32)
        flat = result.reshape(-1)
        span = np.float64(np.float32(high) - np.float32(low))
        for first in range(0, flat.size, _CHUNK):
            chunk = flat[first : first + _CHUNK]
            draws = self._draws(chunk.size) & ((1 << 24) - 1)
            chunk[:] = draws.astype(np.float64) * 2.0**-24 * span + np.float64(np.float32(low))
        return result

    def permutation(self, size: int, count: int) -> Indices:
        """The first `count` of `torch.randperm(size)`, a shuffle from the front: the rest is not drawn.

        Raises RegistryError `unsupported` for sizes for which torch uses another algorithm.
        """
        if size >= _LARGE_PERMUTATION:
            raise RegistryError(
                "unsupported",
                f"The adapter stores {count} indices below {size} only as a seed; torch's generator is reproduced for "
                f"sizes below {_LARGE_PERMUTATION}.",
                hint="Serve the adapter unmerged, or merge it with PEFT.",
            )
        draws = self._draws(min(count, max(size - 1, 0)))
        moved: dict[int, int] = {}
        result = np.arange(count, dtype=np.int64)
        for step, draw in enumerate(draws.tolist()):
            other = step + draw % (size - step)
            result[step] = moved.get(other, other)
            moved[other] = moved.get(step, step)
        if count == size and count:
            result[-1] = moved.get(size - 1, size - 1)
        return result

    def _draws(self, count: int) -> Indices:
        raw: Indices = self._bits.randint(0, 1 << 32, size=count, dtype=np.uint32).astype(np.int64)
        return raw
