"""Sums over the elements of an update: how much of it survived rounding."""

from __future__ import annotations

import math

import msgspec


class UpdateSums(msgspec.Struct, frozen=True):
    """<dW, dW>, <realised, dW> and <realised, realised>, over the elements of one tensor or of several."""

    delta_delta: float
    realised_delta: float
    realised_realised: float

    @property
    def kept(self) -> float | None:
        """None if there was no update to keep."""
        return self.realised_delta / self.delta_delta if self.delta_delta > 0 else None

    @property
    def cosine(self) -> float | None:
        """None if there was no update, or nothing of it was realised."""
        norms = math.sqrt(self.delta_delta) * math.sqrt(self.realised_realised)
        return self.realised_delta / norms if norms > 0 else None
