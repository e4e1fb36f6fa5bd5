"""Code inside a child process: calls one function and exits. Forked by `template`, or started by `python -m`.

In: one JSON document on stdin: `target` ("module:function"), `spec`, `confinement`, and `blobs`. Out: JSON lines on the
pipe: first `{"started": pid}`, then any number of `{"progress": …}` and `{"log": …}`, finally `{"result": …}` or
`{"error": …}`. The parent joins stdout with stderr, so that no output of a library is mistaken for a message. Any other
exception ends the process with a traceback.

Imports neither the engine nor a database. The process holds only its pipe and, if `blobs` is true, a socket over which
its parent reads and stores blobs for it; it is confined before it reads anything else.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import socket
import sys
import threading
from typing import Any, Final

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_registry.processes.attributes import die_with_parent
from lora_registry.processes.confinement import Confinement, confine
from lora_registry.runtime.typed import decode, encode, input_type

_blob_sockets: Final[list[socket.socket]] = []


class ChildReporter:
    """Sends messages to the job. Cheap enough per tensor: the parent forwards the newest progress twice a second."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def progress(self, message: str, *, done: int = 0, total: int | None = None, unit: str = "") -> None:
        """Report progress; done and total in `unit`, total None if unknown."""
        self.send({"progress": {"message": message, "done": done, "total": total, "unit": unit}})

    def log(self, text: str) -> None:
        """Write a line to the job's log; no line is dropped."""
        self.send({"log": text})

    def send(self, message: dict[str, Any]) -> None:
        line = memoryview(json.dumps(message, allow_nan=False).encode() + b"\n")
        with self._lock:
            while line:
                line = line[os.write(self._pipe, line) :]


def resolve(target: str) -> Any:
    """Import the function named `module:function`."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def blob_socket() -> socket.socket | None:
    """Return the socket over which the parent serves blobs; None if this process opens the store itself."""
    return _blob_sockets[0] if _blob_sockets else None


def run(pipe: int, blobs: int) -> None:
    """Read the request from stdin, run its function, and report the result or the error on the pipe."""
    # Not inherited by grandchildren: the parent reads until every copy of the pipe is closed.
    os.set_inheritable(pipe, False)
    os.set_inheritable(blobs, False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the last words before a crash are part of the error
    report = ChildReporter(pipe)
    report.send({"started": os.getpid()})
    request = json.load(sys.stdin)
    if request["blobs"]:
        _blob_sockets.append(socket.socket(fileno=blobs))
    else:
        os.close(blobs)
    try:
        confine(decoding.convert(request["confinement"], Confinement))
        function = resolve(request["target"])
        result = encode(function(decode(request["spec"], input_type(function)), report))
    except RegistryError as error:
        facts = {"code": error.code, "detail": error.detail, "hint": error.hint, "facts": error.facts}
        report.send({"error": facts})
    except MemoryError:
        detail = "The step needs more memory than the worker can allocate."
        report.send({"error": {"code": "job-failed", "detail": detail, "facts": {"reason": "memory"}}})
    else:
        report.send({"result": result})


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    run(int(sys.argv[1]), int(sys.argv[3]))
