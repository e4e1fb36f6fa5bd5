"""Durations as people write them: `30d`, `12h`, `15m`, `90s`."""

from __future__ import annotations

import re
from typing import Final

from lora_contract.errors import RegistryError

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])\Z")
MAX_SECONDS: Final = 100 * 366 * 86400


def parse_duration(text: str) -> float:
    """Return seconds. Raises RegistryError `usage`."""
    found = _DURATION.match(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= MAX_SECONDS:
        raise RegistryError(
            "usage", f"{text[:40]!r} is not a duration; expected a number and one of s, m, h, d, w, such as 30d."
        )
    return float(seconds)
