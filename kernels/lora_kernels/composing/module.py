"""One module of a composition: what goes into a method and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lora_contract.methods import Value
from lora_kernels.adapters import LowRankModule
from lora_kernels.numeric import philox
from lora_kernels.numeric.dtypes import F32, F64


class Part(NamedTuple):
    """What one adapter does to the module. adapter: its place in the list; weight: as asked for."""

    adapter: int
    weight: float
    module: LowRankModule

    @property
    def coefficient(self) -> float:
        """Weight and scale of the adapter."""
        return self.weight * self.module.scale


@dataclass(frozen=True)
class ComposeSettings:
    """parameters: checked, with defaults. largest: rank of any input, in any module."""

    parameters: Mapping[str, Value]
    seed: int
    largest: int

    def number(self, name: str) -> float:
        value = self.parameters[name]
        assert isinstance(value, float)
        return value

    @property
    def density(self) -> float:
        return self.number("density")

    @property
    def majority(self) -> str:
        return str(self.parameters["majority_sign_method"])

    @property
    def scaling(self) -> float:
        return self.number("scaling")

    @property
    def asked_rank(self) -> int | None:
        rank = self.parameters["rank"]
        assert rank is None or isinstance(rank, int)
        return rank

    @property
    def rank(self) -> int:
        """As PEFT has it: if none is asked for, the largest one of all inputs, in every module."""
        return self.asked_rank or self.largest

    @property
    def clamp(self) -> float | None:
        return None if self.parameters.get("clamp") is None else self.number("clamp")

    def key(self, part: Part, tensor: str) -> int:
        """Of the random numbers of an adapter in the module. tensor: A, B, or D of the whole update."""
        return philox.stream_key(self.seed, f"{part.adapter}\0{part.module.module}\0{tensor}")


class Composed(NamedTuple):
    """b @ a, b (outputs, r), a (r, columns). energy: the squared norm of what was asked for, kept: the part of it that
    b @ a holds; None if a method asks for no product."""

    b: F32
    a: F32
    energy: float = 0.0
    kept: float | None = None


Parts = Sequence[Part]
Compose = Callable[[Parts, ComposeSettings], Composed]


def triplets_composed(left: F64, singular: F64, right: F64, energy: float, clamp: float | None = None) -> Composed:
    """B = U S and A = V, as PEFT splits them. energy: of all singular values, those left out too."""
    b, a = left * singular, right
    if clamp is not None and len(singular):
        b, a = _clamped(b, a, clamp)
    held = math.fsum(singular**2)
    kept = min(held / energy, 1.0) if energy > 0 else 1.0
    return Composed(b.astype(np.float32), np.ascontiguousarray(a, np.float32), energy, kept)


def _clamped(b: F64, a: F64, clamp: float) -> tuple[F64, F64]:
    """Both cut off at plus and minus the quantile of their elements. The signs of each pair of vectors, which the
    decomposition leaves open, are fixed first: the quantile depends on them."""
    signs = np.where(a[np.arange(len(a)), np.abs(a).argmax(axis=1)] < 0, -1.0, 1.0)
    b, a = b * signs, signs[:, None] * a
    limit = float(np.quantile(np.concatenate([b.ravel(), a.ravel()]), clamp))
    low, high = min(-limit, limit), max(-limit, limit)
    return b.clip(low, high), a.clip(low, high)
