"""File locks between processes. The kernel releases a lock when its holder dies."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl

_LONGEST_WAIT: Final = 0.25


class Interrupted(Exception):
    """The wait ended because `stop` was set."""


@contextmanager
def locked(path: Path, stop: threading.Event | None = None) -> Iterator[bool]:
    """Hold the lock of this name. Waits for other holders, including threads of this process.

    Yields False, without a lock, if the file system does not support locks: the caller then works on files of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield _acquire(descriptor, stop)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, stop: threading.Event | None) -> bool:
    if sys.platform == "win32":
        return False
    pause = 0.005
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if stop is not None and stop.is_set():
                raise Interrupted from None
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_WAIT)
        except OSError:
            return False
