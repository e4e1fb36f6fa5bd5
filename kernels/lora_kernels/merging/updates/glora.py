"""W (1 + A) + B, elementwise: GLoRA."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.records import Factor
from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Inputs, Reach, Transform
from lora_kernels.numeric.blocks import BLOCK, Block
from lora_kernels.numeric.dtypes import F32, F64


class Path(NamedTuple):
    """A product of left (rows, r) and right (r, columns); or left alone, (1 or rows, 1 or columns)."""

    left: F64
    right: F64 | None = None

    def of(self, block: Block) -> F64:
        left = self.left[block.r0 : block.r1] if len(self.left) > 1 or self.right is not None else self.left
        if self.right is not None:
            return left @ self.right[:, block.c0 : block.c1]
        return left[:, block.c0 : block.c1] if left.shape[1] > 1 else left


class Glora(Transform):
    """In float64: the factor is one and something small."""

    reach: ClassVar[Reach] = "element"

    def __init__(self, times: Path | None, plus: Path | None) -> None:
        self._times = times
        self._plus = plus

    def apply(self, block: Block, values: F32) -> None:
        new = values.astype(np.float64)
        if self._times is not None:
            new *= 1 + self._times.of(block)
        if self._plus is not None:
            new += self._plus.of(block)
        np.copyto(values, new, casting="same_kind")


def load(delta: Delta, inputs: Inputs) -> Glora:
    """factors: of `times`, A, and of `plus`, B: `_d` (rows, r) and `_u` (r, columns), or `_x`: one number, one for each
    row, or, for a bias, one for each element; `zeros_…`, of paths that are switched off.
    Raises RegistryError `rejected` where these are not zero."""
    for name, factor in sorted(delta.factors.items()):
        if name.startswith("zeros_"):
            _check_zeros(factor, inputs.reader)

    def path(role: str) -> Path | None:
        read = {
            name: inputs.reader.load(factor).astype(np.float64)
            for name, factor in delta.factors.items()
            if name.startswith(role)
        }
        if f"{role}_d" in read:
            return Path(read[f"{role}_d"], read[f"{role}_u"])
        single = read.get(f"{role}_x")
        return None if single is None else Path(single if single.ndim == 2 else single[None])

    return Glora(path("times"), path("plus"))


def _check_zeros(factor: Factor, reader: FactorReader) -> None:
    part = np.empty(BLOCK, np.float32)
    elements = math.prod(factor.shape)
    for first in range(0, elements, BLOCK):
        if reader.values(factor, first, part[: min(BLOCK, elements - first)]).any():
            raise RegistryError(
                "rejected",
                f"{factor.name} holds the zeros of a path that adapter_config.json switches off, but is not zero.",
                hint="Merge an adapter as PEFT saved it.",
                tensor=factor.name,
            )
