"""What a siege kills, and how it comes back: as a supervisor would have it, and without a hand."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.soak.site import Ground
from tests.support import service

ALWAYS: Final = ("api", "worker", "both", "child", "backup")
TROUBLES: Final[dict[str, dict[str, Any]]] = {
    "store answers 500": {"answering": 500, "share": 0.7},
    "store answers 503": {"answering": 503, "share": 0.7},
    "store cuts": {"cutting": True, "share": 0.1},
    "store refuses": {"refusing": True},
    "store is slow": {"delay": 0.3},
}
"""What the proxy before the store does meanwhile."""
LONGEST_PAUSE: Final = 4.0
"""Seconds that a store or a database stays away."""


class Victims:
    """The processes of a site. Use it in the main thread: the kernel ends some of them with the thread that started
    them."""

    def __init__(self, ground: Ground, random_: random.Random, only: tuple[str, ...] = ()) -> None:
        self.ground = ground
        self.site = ground.site
        self.random = random_
        self.kinds = only or (
            *ALWAYS,
            *(("store", *TROUBLES) if ground.s3 is not None else ()),
            *(("database", "database at once") if ground.postgres is not None else ()),
        )
        self.backup: subprocess.Popen[Any] | None = None

    def strike(self) -> str:
        """Kill something, or have the store fail; return what. The API, workers and servers are started again."""
        self.tend()
        what = self.random.choice(self.kinds)
        match what:
            case "backup":
                self._back_up()
            case "child":
                kill([pid for worker in self._workers() for pid in descendants(worker)])
            case "store":
                self.ground.s3.programs.kill()
                self._pause()
                self.ground.s3.programs.start()
            case trouble if trouble in TROUBLES:
                assert self.ground.proxy is not None
                for name, value in TROUBLES[trouble].items():
                    setattr(self.ground.proxy, name, value)
                self._pause()
                self.ground.proxy.reset()
            case "database" | "database at once":
                assert self.ground.postgres is not None
                (self.ground.postgres.kill if what == "database" else self.ground.postgres.stop_at_once)()
                self._pause()
                self.ground.postgres.start()
        if what in ("worker", "both"):
            kill(self._workers())
        if what in ("api", "both"):
            kill([*descendants(self.site.service.process.pid)] if not self.site.sqlite else [])
            self.site.service.kill()
            self._start()
        self.tend()
        return what

    def tend(self) -> None:
        """Start a worker where the last one has ended. On SQLite the service does."""
        if not self.site.sqlite and not self._workers():
            self.site.worker()

    def _start(self) -> None:
        """Start the service; on a busy machine the first one may not be ready in time."""
        for _ in range(2):
            with contextlib.suppress(AssertionError):
                self.site.start(by=subprocess.Popen)
                return
        self.site.start(by=subprocess.Popen)

    def end(self, seconds: float) -> None:
        """Wait for the last backup."""
        if self.backup is not None:
            self.backup.wait(seconds)

    def _pause(self) -> None:
        time.sleep(self.random.random() * LONGEST_PAUSE)

    def _workers(self) -> list[int]:
        if self.site.sqlite:
            return [pid for pid in descendants(self.site.service.process.pid) if "worker --parent" in command(pid)]
        return [each.pid for each in self.site.workers if each.poll() is None]

    def _back_up(self) -> None:
        """Kill the backup that runs, if one does, and start the next."""
        if self.backup is not None:
            self.backup.kill()
            self.backup.wait()
        self.backup = subprocess.Popen(
            [sys.executable, "-m", "lora_registry.cli", "backup", str(self.ground.folder / "backup")],
            env=service.environment(self.site.data, self.site.extra),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def descendants(pid: int) -> list[int]:
    """All descendants of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
