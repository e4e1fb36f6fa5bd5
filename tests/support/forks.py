"""Programs of ours that start without importing all they need: forked from a process that has imported it.

`Forked` is a `subprocess.Popen` for a command of the form `[sys.executable, "-m", module, ...]`. Such a process differs
from one that was started by exec in what `ps` shows of it, and in nothing that the tests look at: it has an id, an
environment, standard streams and signals of its own, is a child of this process, and dies with it.

Commands are started this way where starting is not what the test is about. What `lora-registry serve` starts itself, it
starts by exec.
"""

from __future__ import annotations

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lora_contract.startup import importing
from lora_registry.processes.attributes import child_subreaper, die_with_parent
from lora_registry.processes.template import fork_child_of
from lora_registry.runtime import faults

ROOT: Final = Path(__file__).resolve().parents[2]
IMPORTS: Final = {
    "serve": "lora_registry.serving",
    "worker": "lora_registry.worker.main",
    "backup": "tests.registry.backup.imports",
    "restore": "tests.registry.backup.imports",
    "tests.registry.jobs.engine.program": "tests.registry.jobs.engine.handlers",
}
"""By command of `lora-registry`, or by program: what it imports. Other commands import the client of jobs at most."""
LARGEST: Final = 1 << 18
"""Bytes of a message: an environment and a command."""
PIPES: Final = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
SOURCES: Final = ("client", "registry", "kernels")

_lock: Final = threading.Lock()


class Forked(subprocess.Popen[Any]):
    """A process of `[sys.executable, "-m", module, ...]`, without the time that its imports take."""

    def _execute_child(self, *args: Any) -> None:
        # All of Popen but this: pipes, waiting, signals.
        given = _arguments(*args)
        executable, option, module, *rest = given["args"]
        assert (executable, option) == (sys.executable, "-m")
        message = json.dumps(
            {
                "module": module,
                "arguments": rest,
                "environment": dict(os.environ if given["env"] is None else given["env"]),
                "folder": str(given["cwd"] or os.getcwd()),
            }
        ).encode()
        pipes = {0: given["p2cread"], 1: given["c2pwrite"], 2: given["errwrite"]}
        streams = [number if pipe == -1 else pipe for number, pipe in pipes.items()]
        with _lock, child_subreaper():
            channel, _ = _template(IMPORTS.get(module) or IMPORTS.get(rest[0], "lora_registry.admin"), os.getpid())
            socket.send_fds(channel, [message], streams)
            self.pid = int(channel.recv(32))
        assert self.pid, "no process could be forked"
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in PIPES))  # type: ignore[attr-defined]


def _arguments(*args: Any) -> dict[str, Any]:
    signature = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
    return dict(signature.bind(None, *args).arguments)


@functools.cache
def _template(module: str, _owner: int) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks", str(theirs.fileno()), str(os.getpid()), module],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / each) for each in ("", *SOURCES))},
            pass_fds=(theirs.fileno(),),
        )
    return ours, process


def main(channel: socket.socket, parent: int, module: str) -> None:
    """Fork a process per message, and answer with its id, until the socket is closed."""
    die_with_parent(parent)
    with importing():
        importlib.import_module(module)
    while True:
        message, streams, _, _ = socket.recv_fds(channel, LARGEST, 3)
        if not message:
            return
        reader, writer = os.pipe()
        if fork_child_of(parent):
            os.close(reader)
            os.write(writer, str(os.getpid()).encode())
            os.close(writer)
            channel.close()
            run(json.loads(message), streams)
            return
        os.close(writer)
        channel.send(os.read(reader, 32) or b"0")
        for end in (reader, *streams):
            os.close(end)


def run(asked: dict[str, Any], streams: Sequence[int]) -> None:
    """Become the process that was asked for."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    importlib.reload(faults)  # what is armed is read at import
    sys.argv = [asked["module"], *asked["arguments"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
