"""Losses of a base alone, kept for the next adapter that is validated on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

LogProbabilities: TypeAlias = list[np.ndarray[Any, np.dtype[np.float64]]]
Measured: TypeAlias = tuple[LogProbabilities, list[list[float | None]]]
"""Log-probabilities (tokens, vocabulary) of each probe; nats of each record of each evaluation set."""


@dataclass(slots=True)
class BaseLosses:
    """What the last base gave. Pass one instance to `validate` for several adapters: a base, its precision and the
    evaluation sets then determine its losses, which are computed once."""

    _last: dict[Hashable, Measured] = field(default_factory=dict)

    def get(self, key: Hashable, measure: Callable[[], Measured]) -> Measured:
        """Return the losses for a key, from `measure` unless they are those of the last call."""
        if key not in self._last:
            self._last = {key: measure()}
        return self._last[key]
