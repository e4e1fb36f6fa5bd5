"""The inside of a child process: `python -m lora_registry.jobs.child PIPE PARENT` runs one function and ends.

In: one JSON document `{"target": "module:function", "spec": …}` on stdin. Out: JSON lines on the pipe, each one of
`{"progress": …}`, `{"log": …}`, and at the end `{"result": …}` or `{"error": …}`. Stdout is joined with stderr by the
parent, so what a library prints cannot be taken for a message. Any other exception ends the process with a traceback.

Imports neither the engine nor a database: the process holds only its pipe.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
from typing import Any

from lora_contract.errors import RegistryError

_PR_SET_PDEATHSIG = 1


class Report:
    """What the function tells its job. Cheap: call it per tensor; the parent passes on the newest, twice a second."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def progress(self, message: str, *, done: int = 0, total: int | None = None, unit: str = "") -> None:
        """How far the work is; done and total in `unit`, total None where it is not known."""
        self.send({"progress": {"message": message, "done": done, "total": total, "unit": unit}})

    def log(self, text: str) -> None:
        """A line for the job's log; every one is kept."""
        self.send({"log": text})

    def send(self, message: dict[str, Any]) -> None:
        line = memoryview(json.dumps(message, allow_nan=False).encode() + b"\n")
        with self._lock:
            while line:
                line = line[os.write(self._pipe, line) :]


def die_with_parent(parent: int, *, sent: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `sent` to this process when the thread that started it ends; exit if it already has.

    parent: process id of the starter. Linux only.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sent), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def resolve(target: str) -> Any:
    """The function that `module:function` names."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def main(arguments: list[str]) -> None:
    pipe, parent = int(arguments[0]), int(arguments[1])
    die_with_parent(parent)
    # Not for grandchildren: the parent reads until the last holder of the pipe has closed it.
    os.set_inheritable(pipe, False)
    report = Report(pipe)
    request = json.load(sys.stdin)
    try:
        result = resolve(request["target"])(request["spec"], report)
    except RegistryError as error:
        facts = {"code": error.code, "detail": error.detail, "hint": error.hint, "facts": error.facts}
        report.send({"error": facts})
    except MemoryError:
        detail = "The work needs more memory than the worker could get."
        report.send({"error": {"code": "job-failed", "detail": detail, "facts": {"reason": "memory"}}})
    else:
        report.send({"result": result})


if __name__ == "__main__":
    main(sys.argv[1:])
