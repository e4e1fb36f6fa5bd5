"""Pairs of outputs turned and scaled: RoAd."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_kernels.merging.delta import Delta
from lora_kernels.merging.updates.protocols import Inputs, Reach, Transform
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, F64


class Road(Transform):
    """Row i of a group of g becomes own[i] row[i] + other[i] row[i +- g / 2]. In float64."""

    reach: ClassVar[Reach] = "row"

    def __init__(self, own: F64, other: F64, group: int, *, vector: bool) -> None:
        self._own = own
        self._other = other
        self._group = group
        # A vector is one row: its elements are the outputs.
        self._vector = vector
        self.band = 1 if vector else group

    def apply(self, block: Block, values: F32) -> None:
        outputs = values.reshape(-1, 1) if self._vector else values
        start = 0 if self._vector else block.r0
        for first in range(0, len(outputs), self._group):
            rows = slice(first, first + self._group)
            own, other = (part[start + first : start + first + self._group] for part in (self._own, self._other))
            old = outputs[rows].astype(np.float64)
            np.copyto(outputs[rows], own * old + other * np.roll(old, self._group // 2, axis=0), casting="same_kind")


def load(delta: Delta, inputs: Inputs) -> Road:
    """factors: theta and alpha, `each` of them for a pair of outputs: 1, both share it; 2, one for each; 4, two for
    each, of which one acts on the output itself and one on its pair. options: group; each; vector, True for a bias."""
    group, each = delta.options["group"], delta.options["each"]
    theta, alpha = (inputs.reader.load(delta.factors[name]).astype(np.float64) for name in ("theta", "alpha"))
    cos, sin = alpha * np.cos(theta), alpha * np.sin(theta)
    if each == 1:
        cos, sin = (np.repeat(part.reshape(-1, group // 2), 2, axis=0).reshape(-1) for part in (cos, sin))
    if each == 4:
        cos, sin = cos.reshape(-1, 2, group)[:, 0].reshape(-1), sin.reshape(-1, 2, group)[:, 1].reshape(-1)
    # The first half of a group takes the second one with a minus.
    signs = np.tile(np.repeat([-1.0, 1.0], group // 2), len(cos) // group)
    vector = bool(delta.options.get("vector"))
    return Road(cos[:, None], (signs * sin)[:, None], group, vector=vector)
