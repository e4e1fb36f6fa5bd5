"""Servers that tests start: children that cannot outlive the test run, on free ports of 127.0.0.1."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago. Held together while choosing, so that all differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def start(
    command: list[str], *, log: Path, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a server; its output goes to `log`. The kernel kills it when the test process dies, even by -9.

    Call it from the main thread: the kernel watches the thread that forked.
    """

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=clean | dict(environment or {}),
            cwd=folder,
            # One prctl between fork and exec: takes no lock, so threads are no danger.
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def wait_until(ready: Callable[[], bool], *, what: str, log: Path, seconds: float = 60) -> None:
    """Poll until `ready`; raises TimeoutError with the last lines of the log."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
