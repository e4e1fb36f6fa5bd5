"""Sums over the elements of an update: how much of it survived rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpdateSums:
    """<dW, dW>, <realised, dW> and <realised, realised>, over the elements of one tensor or of several."""

    delta_delta: float
    realised_delta: float
    realised_realised: float

    @property
    def kept(self) -> float | None:
        """The share of dW that survived rounding; None if dW is zero."""
        return self.realised_delta / self.delta_delta if self.delta_delta > 0 else None

    @property
    def cosine(self) -> float | None:
        """Cosine of dW and the realised change; None if either is zero."""
        norms = math.sqrt(self.delta_delta) * math.sqrt(self.realised_realised)
        return self.realised_delta / norms if norms > 0 else None
