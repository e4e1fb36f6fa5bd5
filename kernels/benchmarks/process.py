"""Measurement of whole processes: wall time, processor time and peak memory of a command, from start to end."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]

# A process starts with its parent's peak memory (Linux keeps it across exec), so the parent is this launcher, not the
# benchmark with its arrays. The peak is the largest one of the process and of the children that it waited for.
_LAUNCHER: Final = """
import json, os, sys, time
began = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
took = time.perf_counter() - began
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
"""
# Each program uses its default number of threads. Waiting threads sleep, which was measured to be faster for the peers.
_DROPPED: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONPATH", "PYTHONHASHSEED")
_SET: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_WAIT_POLICY": "passive"}


class CommandFailed(Exception):
    """The command exited with a status other than 0. The text contains the end of its stderr."""


@dataclass(frozen=True, slots=True)
class Usage:
    """seconds: wall. cpu_seconds: user and system. peak_mb: largest resident set, in 10^6 bytes. output: stdout."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str


def environment(extra: Mapping[str, str] = {}, *, ours: bool = False) -> dict[str, str]:
    """The environment of a measured process. ours: with this checkout's packages on the path."""
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    path = {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("client", "kernels"))} if ours else {}
    return {**kept, **_SET, **path, **extra}


def python(*arguments: object) -> list[str]:
    """A command that runs this interpreter."""
    return [sys.executable, *map(str, arguments)]


def measure(command: Sequence[object], scratch: Path, *, ours: bool = False) -> Usage:
    """Run a command to its end. scratch: an existing folder for the measurement. Raises CommandFailed."""
    result = scratch / "usage.json"
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(result), *map(str, command)]
    with (scratch / "stderr").open("w+b") as errors:
        done = subprocess.run(
            launcher, env=environment(ours=ours), stdout=subprocess.PIPE, stderr=errors, check=False, text=True
        )
        errors.seek(0)
        stderr = errors.read().decode(errors="replace")[-2000:]
    if done.returncode:
        raise CommandFailed(f"{' '.join(map(str, command))} could not be started:\n{stderr}")
    status, seconds, cpu, peak = json.loads(result.read_text())
    if status:
        raise CommandFailed(f"{' '.join(map(str, command))} exited with {status}:\n{stderr}")
    return Usage(seconds, cpu, peak * 1024 / 1e6, done.stdout)


def interleaved(
    contestants: Mapping[str, Callable[[], Usage]], runs: int, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Run every contestant once per round, each round starting with a different one. Returns summaries by name."""
    names = list(contestants)
    usages: dict[str, list[Usage]] = {name: [] for name in names}
    for index in range(runs):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            usage = contestants[name]()
            log(f"  round {index + 1}  {name:16} {usage.seconds:8.2f} s  {usage.peak_mb:7.0f} MB")
            usages[name].append(usage)
    return {name: summary(measured) for name, measured in usages.items()}


def summary(usages: Sequence[Usage]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(usage.seconds for usage in usages),
        "all_seconds": [round(usage.seconds, 4) for usage in usages],
        "cpu_seconds": statistics.median(usage.cpu_seconds for usage in usages),
        "peak_mb": max(usage.peak_mb for usage in usages),
    }
