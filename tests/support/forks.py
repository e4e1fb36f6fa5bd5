"""Programs of ours that start without importing all they need: forked from a process that has imported it.

`Forked` is a `subprocess.Popen` for a command of the form `[sys.executable, "-m", module, ...]`. Such a process differs
from one that was started by exec in what `ps` shows of it, and in nothing that the tests look at: it has an id, an
environment, standard streams and signals of its own, is a child of this process, and dies with it.

Commands are started this way where starting is not what the test is about. What they start themselves with imports that
take long is forked too, by a process that each gets as a child: the worker of a service, and a worker's warm process for
validations, which would import torch and PEFT anew in every worker of a run.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from lora_contract.startup import importing
from lora_registry.processes.attributes import child_subreaper, die_with_parent
from lora_registry.processes.template import fork_child_of
from lora_registry.processes.variables import for_children
from lora_registry.runtime import faults

ROOT: Final = Path(__file__).resolve().parents[2]
IMPORTS: Final = {
    "serve": "tests.support.forked_services",
    "worker": "tests.support.forked_workers",
    "backup": "tests.registry.backup.imports",
    "restore": "tests.registry.backup.imports",
    "tests.registry.jobs.engine.program": "tests.registry.jobs.engine.handlers",
}
"""By command of `lora-registry`, or by program: what it imports. Other commands import the client of jobs at most."""
LARGEST: Final = 1 << 18
"""Bytes of a message: an environment and a command."""
DESCRIPTORS: Final = 8
"""Descriptors of a message at most: the standard streams, and those that are passed."""
PIPES: Final = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
SOURCES: Final = ("client", "registry", "kernels")
Starts: TypeAlias = Mapping[str, tuple[str, str]]
"""What a process starts: by the module that does, the module that is run, and an argument that tells the command."""

_lock: Final = threading.Lock()
_started: Final[list[subprocess.Popen[bytes]]] = []
_inherited: Final[dict[str, socket.socket]] = {}


class Forked(subprocess.Popen[Any]):
    """A process of `[sys.executable, "-m", module, ...]`, without the time that its imports take."""

    def _execute_child(self, *args: Any) -> None:
        # All of Popen but this: pipes, waiting, signals.
        given = _arguments(*args)
        executable, option, module, *rest = given["args"]
        assert (executable, option) == (sys.executable, "-m")
        passed = list(given["pass_fds"])
        message = json.dumps(
            {
                "module": module,
                "arguments": rest,
                "environment": dict(os.environ if given["env"] is None else given["env"]),
                "folder": str(given["cwd"] or os.getcwd()),
                "descriptors": [0, 1, 2, *passed],
            }
        ).encode()
        pipes = {0: given["p2cread"], 1: given["c2pwrite"], 2: given["errwrite"]}
        streams = [number if pipe == -1 else pipe for number, pipe in pipes.items()]
        with _lock, child_subreaper():
            channel = _inherited.get(module) or _template(
                IMPORTS.get(module) or IMPORTS.get(rest[0], "lora_registry.admin"), os.getpid()
            )
            socket.send_fds(channel, [message], [*streams, *passed])
            self.pid = int(channel.recv(32))
        assert self.pid, "no process could be forked"
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in PIPES))  # type: ignore[attr-defined]


def _arguments(*args: Any) -> dict[str, Any]:
    signature = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
    return dict(signature.bind(None, *args).arguments)


@functools.cache
def _template(module: str, _owner: int) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        _started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.forks", str(theirs.fileno()), str(os.getpid()), module],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / each) for each in ("", *SOURCES))},
                pass_fds=(theirs.fileno(),),
            )
        )
    return ours


def main(channel: socket.socket, parent: int, module: str) -> None:
    """Import a module, then serve."""
    die_with_parent(parent)
    # Read at import, and the same for all children of workers.
    os.environ.update(for_children({}))
    with importing():
        imported = importlib.import_module(module)
    serve(channel, parent, getattr(imported, "STARTS", {}))


def serve(channel: socket.socket, parent: int, starts: Starts) -> None:
    """Fork a process per message, and answer with its id, until the socket is closed."""
    while True:
        message, received, _, _ = socket.recv_fds(channel, LARGEST, DESCRIPTORS)
        if not message:
            return
        reader, writer = os.pipe()
        if fork_child_of(parent):
            os.close(reader)
            os.write(writer, str(os.getpid()).encode())
            os.close(writer)
            channel.close()
            asked = json.loads(message)
            take(received, asked["descriptors"])
            if starts:
                fork_for(starts)
            run(asked)
            return
        os.close(writer)
        channel.send(os.read(reader, 32) or b"0")
        for end in (reader, *received):
            os.close(end)


def take(received: Sequence[int], numbers: Sequence[int]) -> None:
    """Give what was received the numbers that the command expects."""
    above = max(numbers) + 1
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD, above) for each in received]
    for each in received:
        os.close(each)
    for each, number in zip(moved, numbers, strict=True):
        os.dup2(each, number)
        os.close(each)


def fork_for(starts: Starts) -> None:
    """Give this process a child that forks what it starts, with all that is imported by now."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        ours.close()
        die_with_parent(parent)
        serve(theirs, parent, {})
        os._exit(0)
    theirs.close()
    for starter, (module, marker) in starts.items():
        _inherited[module] = ours
        sys.modules[starter].subprocess = _Subprocess(marker)  # type: ignore[attr-defined]


class _Subprocess:
    """`subprocess`, in a module that starts by exec what is forked here if its command has the marker."""

    def __init__(self, marker: str) -> None:
        self._marker = marker

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:  # noqa: N802
        return (Forked if self._marker in command else subprocess.Popen)(command, **options)


def run(asked: dict[str, Any]) -> None:
    """Become the process that was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    importlib.reload(faults)  # what is armed is read at import
    sys.argv = [asked["module"], *asked["arguments"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
