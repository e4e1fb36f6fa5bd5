"""The inside of a child process: runs one function and ends. Forked by `template`, or started by `python -m`.

In: one JSON document `{"target": "module:function", "spec": …}` on stdin. Out: JSON lines on the pipe, first
`{"started": pid}`, then each one of `{"progress": …}`, `{"log": …}`, and at the end `{"result": …}` or `{"error": …}`.
Stdout is joined with stderr by the parent, so what a library prints cannot be taken for a message. Any other exception
ends the process with a traceback.

Imports neither the engine nor a database: the process holds only its pipe.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from typing import Any

from lora_contract.errors import RegistryError
from lora_registry.processes.attributes import die_with_parent
from lora_registry.runtime.typed import decode, encode, input_type


class ChildReporter:
    """Messages to the job. Cheap: call it per tensor; the parent passes on the newest, twice a second."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def progress(self, message: str, *, done: int = 0, total: int | None = None, unit: str = "") -> None:
        """How far the work is; done and total in `unit`, total None if it is not known."""
        self.send({"progress": {"message": message, "done": done, "total": total, "unit": unit}})

    def log(self, text: str) -> None:
        """A line for the job's log; every one is kept."""
        self.send({"log": text})

    def send(self, message: dict[str, Any]) -> None:
        line = memoryview(json.dumps(message, allow_nan=False).encode() + b"\n")
        with self._lock:
            while line:
                line = line[os.write(self._pipe, line) :]


def resolve(target: str) -> Any:
    """The function that `module:function` names."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def run(pipe: int) -> None:
    """Read the request from stdin, run its function, and report the result or the error on the pipe."""
    # Not for grandchildren: the parent reads until the last holder of the pipe has closed it.
    os.set_inheritable(pipe, False)
    report = ChildReporter(pipe)
    report.send({"started": os.getpid()})
    request = json.load(sys.stdin)
    try:
        function = resolve(request["target"])
        result = encode(function(decode(request["spec"], input_type(function)), report))
    except RegistryError as error:
        facts = {"code": error.code, "detail": error.detail, "hint": error.hint, "facts": error.facts}
        report.send({"error": facts})
    except MemoryError:
        detail = "The work needs more memory than the worker could get."
        report.send({"error": {"code": "job-failed", "detail": detail, "facts": {"reason": "memory"}}})
    else:
        report.send({"result": result})


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    run(int(sys.argv[1]))
