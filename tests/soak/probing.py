"""What an attack costs the service: the longest answer of /healthz, its memory and that of its checks, processor time.

Measured by a process of its own (`python -m tests.soak.probing URL PID`), so that neither the attacker's work nor its
interpreter lock delays a probe. On a busy machine a probe also takes long because others hold the processors: `own` is
without the time that the API's event loop was ready to run and had no processor.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

EVERY: Final = 0.01
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Cost:
    """What was seen. Times are in seconds.

    Args:
        stall: the longest answer.
        own: the longest answer without the time that the event loop waited for a processor.
        megabytes: what the API gained at most.
        child_megabytes: what a child of the API gained at most since its fork.
        processor: time of the API and of those of its children that ended.
    """

    stall: float = 0.0
    own: float = 0.0
    probes: int = 0
    megabytes: float = 0.0
    child_megabytes: float = 0.0
    processor: float = 0.0


@contextmanager
def watched(url: str, pid: int) -> Iterator[Cost]:
    """Measure for the length of a block; the cost is filled in at its end."""
    cost = Cost()
    begun = processor(pid)
    command = [sys.executable, "-m", "tests.soak.probing", url, str(pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as probe:
        assert probe.stdin is not None
        assert probe.stdout is not None
        probe.stdout.readline()
        try:
            yield cost
        finally:
            probe.stdin.close()
            found = json.loads(probe.stdout.read())
            cost.__dict__.update(found)
            cost.processor = processor(pid) - begun


def processor(pid: int) -> float:
    """Seconds of a process and of those of its children that have ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS
    return 0.0


def resident(pid: int) -> int:
    """Bytes of memory that a process holds now, without what it shares with files."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/statm").read_text("ascii").split()
        return (int(fields[1]) - int(fields[2])) * _PAGE
    return 0


def waited(pid: int) -> float:
    """Seconds that the first thread of a process was ready to run and had no processor."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text("ascii").split()[1]) / 1e9


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += [int(child) for child in (task / "children").read_text("ascii").split()]
    return found


def _worker(pid: int) -> bool:
    with suppress(OSError):
        return b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return True


def main() -> None:
    url, pid = urlsplit(sys.argv[1]), int(sys.argv[2])
    cost = Cost()
    connection = HTTPConnection(url.netloc, timeout=300)
    connection.connect()
    before = resident(pid)
    first: dict[int, int] = {}
    strangers = {child for child in children(pid) if _worker(child)}
    print("begun", flush=True)
    due = time.monotonic() + EVERY
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        begun, lost = time.monotonic(), waited(pid)
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        answer.read()
        ended = time.monotonic()
        cost.stall = max(cost.stall, ended - begun)
        cost.own = max(cost.own, ended - begun - (waited(pid) - lost))
        cost.probes += 1
        cost.megabytes = max(cost.megabytes, (resident(pid) - before) / 2**20)
        for child in children(pid):
            if child not in strangers:
                now = resident(child)
                cost.child_megabytes = max(cost.child_megabytes, (now - first.setdefault(child, now)) / 2**20)
        due = max(due + EVERY, time.monotonic())
    print(json.dumps(cost.__dict__))


if __name__ == "__main__":
    main()
