"""What the command's flags say to a suite."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """runs: rounds, of which medians are taken. peft_limit: seconds that one measurement of PEFT may be expected to
    take; beyond it a part is measured and the result says so."""

    runs: int = 5
    peft_limit: float = 720.0
