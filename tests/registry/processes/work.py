"""Work of children in these tests."""

from __future__ import annotations

import importlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lora_registry.processes.child import ChildReporter


def look(_spec: dict[str, Any], _report: ChildReporter) -> dict[str, Any]:
    """What a child finds when it begins."""
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": sorted(os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()),
        "environment": dict(os.environ),
        "forked": "lora_registry.processes.template" in sys.orig_argv,
        "random": random.random(),
        "numpy": float(np.random.random()),  # noqa: NPY002
    }


def threads(_spec: dict[str, Any], _report: ChildReporter) -> int:
    """Leave threads behind, of Python and of BLAS."""
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    wide = np.ones((500, 500))
    np.dot(wide, wide)
    return len(os.listdir("/proc/self/task"))


def wait(spec: dict[str, Any], report: ChildReporter) -> int:
    """Until the file `spec["go"]` is there."""
    Path(spec["begun"]).write_text(str(os.getpid()))
    while not Path(spec["go"]).exists():
        report.progress("waiting")
        time.sleep(0.02)
    return os.getpid()


def escape(spec: dict[str, Any], _report: ChildReporter) -> dict[str, str]:
    """What comes of each way out: `done`, or the name of the error."""
    ways: dict[str, Callable[[], object]] = {
        "connect": lambda: socket.create_connection(("127.0.0.1", spec["port"]), timeout=5).close(),
        "environment": lambda: Path(f"/proc/{spec['parent']}/environ").read_bytes(),
        "signal": lambda: os.kill(spec["parent"], 0),
        "read": lambda: Path(spec["secret"]).read_bytes(),
        "write": lambda: Path(spec["secret"]).with_name("new").touch(),
        "read allowed": lambda: Path(spec["readable"]).read_bytes(),
        "write there": lambda: Path(spec["readable"]).write_bytes(b""),
        "write allowed": lambda: Path(spec["writable"]).write_bytes(b"x"),
        "import": lambda: importlib.import_module("sqlite3"),
        "memory": lambda: bytes(300 << 20),
        "fork": lambda: os.fork() or os._exit(0),
        "thread": threading.Thread(target=str).start,
        "program": lambda: subprocess.run(["/bin/true"], check=True),
    }
    found = {}
    for name in spec["ways"]:
        try:
            ways[name]()
            found[name] = "done"
        except (OSError, MemoryError, RuntimeError) as error:
            found[name] = type(error).__name__
    return found
