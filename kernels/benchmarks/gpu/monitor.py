"""Clocks, power and temperature of the GPU while something runs: one nvidia-smi that samples all the time."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections import deque
from types import TracebackType
from typing import Final

_FIELDS: Final = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_throttle_reasons.active")
_SHORT: Final = ("sm_mhz", "memory_mhz", "watts", "celsius", "throttle")
_EVERY_MS: Final = 100
# Samples of about two minutes.
_KEPT: Final = 1200


class Monitor:
    """A context. Without nvidia-smi it has no samples."""

    def __init__(self) -> None:
        self._samples: deque[tuple[str, ...]] = deque(maxlen=_KEPT)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Monitor:
        program = shutil.which("nvidia-smi")
        if program is not None:
            query = [f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits", f"--loop-ms={_EVERY_MS}"]
            self._process = subprocess.Popen([program, *query], stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def take(self) -> dict[str, list[float] | list[str]]:
        """[lowest, highest] of each field since the last call, and the reasons for a lower clock; empty if there was no
        sample."""
        rows = [self._samples.popleft() for _ in range(len(self._samples))]
        found: dict[str, list[float] | list[str]] = {}
        for name, values in zip(_SHORT, zip(*rows, strict=True), strict=False):
            if name == "throttle":
                found[name] = sorted(set(values))
                continue
            numbers = [number for number in map(_number, values) if number is not None]
            if numbers:
                found[name] = [min(numbers), max(numbers)]
        return found

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            values = tuple(part.strip() for part in line.split(","))
            if len(values) == len(_FIELDS):
                self._samples.append(values)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
