"""Code inside a warm process: `python -m lora_registry.processes.template SOCKET PARENT MODULE…`.

Imports the modules, sends `ready` on its socket, and forks one child per message. A message carries four
descriptors: the child's stdin, its output, its pipe for reports and its socket for blobs.

A child's parent is the worker: it is forked by an intermediate process whose end makes the worker, a subreaper at that
moment, its parent. So a child dies with its worker and outlives its template, only the worker waits for it, and its
process id is not reused before that.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from lora_contract.startup import importing
from lora_registry.processes import child
from lora_registry.processes.attributes import die_with_parent

READY: Final = b"ready"


def main(channel: socket.socket, parent: int, modules: Sequence[str]) -> None:
    """Serve until the worker closes the socket. Also returns in each child, after its work."""
    die_with_parent(parent)
    # What is frozen is not visited by a collection in a child, which would write to every page and so copy it.
    with importing():
        for module in modules:
            # The child imports it again and reports the error as its own.
            with suppress(Exception):
                importlib.import_module(module)
    if (reason := reason_not_to_fork()) is not None:
        channel.send(reason.encode())
        return
    channel.send(READY)
    while True:
        message, ends, _, _ = socket.recv_fds(channel, 16, 4)
        if not message:
            return
        if fork_child_of(parent):
            channel.close()
            _run(*ends)
            return
        for end in ends:
            os.close(end)


def reason_not_to_fork() -> str | None:
    """Return why this process must not be forked; None if it can be."""
    # OpenBLAS starts threads on load, stops them before a fork and restarts them on use: fork once before counting.
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        return f"{threads} threads run in it"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialized in it"
    return None


def fork_child_of(parent: int) -> bool:
    """Fork a child of `parent`, in a new session. Return True in the child."""
    try:
        intermediate = os.fork()
    except OSError:
        return False  # the worker sees closed descriptors
    if intermediate:
        os.waitpid(intermediate, 0)
        return False
    intermediate_pid = os.getpid()
    try:
        in_child = os.fork() == 0
    except OSError:
        os._exit(1)
    if not in_child:
        os._exit(0)
    while os.getppid() == intermediate_pid:
        time.sleep(0.0005)
    os.setsid()
    die_with_parent(parent)
    return True


def _run(request: int, output: int, pipe: int, blobs: int) -> None:
    os.dup2(request, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(request)
    os.close(output)
    # torch uses a fixed seed, and `random` reseeds itself after a fork.
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    child.run(pipe, blobs)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3:])
