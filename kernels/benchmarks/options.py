"""Options of a suite, from the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """runs: rounds; medians are reported. peft_limit: maximum estimate of one PEFT measurement in seconds; beyond it,
    only a part is measured, and the result says so."""

    runs: int = 5
    peft_limit: float = 720.0
