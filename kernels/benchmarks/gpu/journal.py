"""The lines of a run, and its deadline."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final

# Nothing new begins after this share of the limit; what has begun then has time to end.
BEGIN_UNTIL: Final = 0.75


class Journal:
    """JSON lines, each printed and on disk before `write` returns: a run that is killed loses nothing it knew."""

    def __init__(self, path: Path, limit: float) -> None:
        """path: is replaced. limit: seconds of the whole run, from now."""
        self._began = time.monotonic()
        self._limit = limit
        self._path = path
        path.write_bytes(b"")

    def write(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"kind": kind, "at": round(self.seconds(), 2), **_rounded(fields)})
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def left(self) -> float:
        """Seconds until the limit."""
        return self._limit - self.seconds()

    def may_begin(self, what: str) -> bool:
        """Whether there is time to begin something; if not, a line says what was left out."""
        if self.seconds() < BEGIN_UNTIL * self._limit:
            return True
        self.write("left out", what=what, reason=f"{BEGIN_UNTIL:.0%} of {self._limit:.0f} s have passed")
        return False


def _rounded(value: Any) -> Any:
    """Round to six digits, more than the precision of a clock."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
