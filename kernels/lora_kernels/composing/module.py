"""Input and output of a composition method on one module."""

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


class Summand(NamedTuple):
    """The update by one adapter. adapter: index in the list. weight: as requested."""

    adapter: int
    weight: float
    module: LowRankModule

    @property
    def coefficient(self) -> float:
        """Weight times scale of the adapter."""
        return self.weight * self.module.scale


@dataclass(frozen=True)
class ComposeSettings:
    """parameters: checked, with defaults. largest: largest rank of any module of any input."""

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
    def requested_rank(self) -> int | None:
        rank = self.parameters["rank"]
        assert rank is None or isinstance(rank, int)
        return rank

    @property
    def rank(self) -> int:
        """The rank of every module: as requested or, as in PEFT, the largest of all inputs."""
        return self.requested_rank or self.largest

    @property
    def clamp(self) -> float | None:
        return None if self.parameters.get("clamp") is None else self.number("clamp")

    def key(self, summand: Summand, tensor: str) -> int:
        """The key of the random numbers of an adapter in the module. tensor: A, B, or D for the whole update."""
        return philox.stream_key(self.seed, f"{summand.adapter}\0{summand.module.module}\0{tensor}")


class Composed(NamedTuple):
    """The product of b (outputs, r) and a (r, columns). energy: squared norm of the exact result. kept: its share in
    b @ a; None if the method defines no product."""

    b: F32
    a: F32
    energy: float = 0.0
    kept: float | None = None


Summands = Sequence[Summand]
Compose = Callable[[Summands, ComposeSettings], Composed]


def from_triplets(left: F64, singular: F64, right: F64, energy: float, clamp: float | None = None) -> Composed:
    """B = U S and A = V, as in PEFT. energy: of all singular values, including the discarded ones."""
    b, a = left * singular, right
    if clamp is not None and len(singular):
        b, a = _clamped(b, a, clamp)
    held = math.fsum(singular**2)
    kept = min(held / energy, 1.0) if energy > 0 else 1.0
    return Composed(b.astype(np.float32), np.ascontiguousarray(a, np.float32), energy, kept)


def _clamped(b: F64, a: F64, clamp: float) -> tuple[F64, F64]:
    """Clip both factors at plus and minus the quantile of their elements. The signs of each pair of vectors, which are
    arbitrary in a decomposition, are fixed first: the quantile depends on them."""
    signs = np.where(a[np.arange(len(a)), np.abs(a).argmax(axis=1)] < 0, -1.0, 1.0)
    b, a = b * signs, signs[:, None] * a
    limit = float(np.quantile(np.concatenate([b.ravel(), a.ravel()]), clamp))
    low, high = min(-limit, limit), max(-limit, limit)
    return b.clip(low, high), a.clip(low, high)
