"""The machine of a measurement, and its load by other processes."""

from __future__ import annotations

import os
import platform
import re
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Cores that this process may use, processor, memory and system: no names of hosts, users or folders."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model[1] if model else platform.machine(),
        "memory_gb": round(pages / 1e9),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages, without missing ones."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class OtherLoad:
    """Load by other processes since this object was created, including the kernel's write-back."""

    def __init__(self) -> None:
        self._busy, self._total = _machine_ticks()
        self._own = _own_seconds()

    def share(self) -> float:
        """The share of all cores' time, from 0 to 1."""
        busy, total = _machine_ticks()
        spent = _own_seconds() - self._own
        ticks = os.sysconf("SC_CLK_TCK")
        return max(0.0, (busy - self._busy) / ticks - spent) / max((total - self._total) / ticks, 1e-9)


def _machine_ticks() -> tuple[int, int]:
    """(busy, total) ticks of all cores."""
    values = [int(text) for text in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    idle = values[3] + values[4]
    return sum(values) - idle, sum(values)


def _own_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
