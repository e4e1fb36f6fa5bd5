"""Clocks, power and temperature of the GPU while something runs: one nvidia-smi that samples all the time."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections import deque
from types import TracebackType
from typing import Final

_FIELDS: Final = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
# Newer and older drivers name it differently, and reject a query with the other name as a whole.
_REASONS: Final = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_OPTIONS: Final = "--format=csv,noheader,nounits"
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
            fields = [*_FIELDS, *(name for name in _REASONS if _answer(program, name))][: len(_SHORT)]
            query = [program, f"--query-gpu={','.join(fields)}", _OPTIONS, f"--loop-ms={_EVERY_MS}"]
            self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
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
        for name, values in zip(_SHORT, zip(*rows, strict=False), strict=False):
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
            if len(values) >= len(_FIELDS):
                self._samples.append(values)


def driver() -> str | None:
    """Version of the GPU's driver; None without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    return None if program is None else _answer(program, "driver_version")


def _answer(program: str, field: str) -> str | None:
    """A field of the first GPU; None if the driver rejects it."""
    query = [program, f"--query-gpu={field}", _OPTIONS]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else done.stdout.partition("\n")[0].strip()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
