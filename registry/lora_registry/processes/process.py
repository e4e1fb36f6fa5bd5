"""A child process as seen by its worker: send its request, watch, kill and reap it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

_LINGER: Final = 10.0


class Pipes:
    """Three pipes between parent and child: request in, output and reports out; and a socket for blobs."""

    def __init__(self) -> None:
        self.request_end, self.request = os.pipe()
        self.output, self.output_end = os.pipe()
        self.reports, self.reports_end = os.pipe()
        self.blobs, self._blobs_end = socket.socketpair()

    @property
    def ends(self) -> list[int]:
        """The child's ends, in the order that `template` expects."""
        return [self.request_end, self.output_end, self.reports_end, self._blobs_end.fileno()]

    def close_ends(self) -> None:
        """Close the child's ends in this process, so that only the child holds them."""
        for end in self.ends[:3]:
            os.close(end)
        self._blobs_end.close()

    def close(self) -> None:
        for end in (self.request, self.output, self.reports):
            os.close(end)
        self.blobs.close()

    def started(self, seconds: float) -> int | None:
        """Return the process id that the child reports first; None if it ends or stays silent for `seconds`."""
        # The child writes nothing else before it has read its request.
        if not select.select([self.reports], [], [], seconds)[0]:
            return None
        line = os.read(self.reports, 64)
        return int(json.loads(line)["started"]) if line else None


class Process:
    """Nothing else may wait for the process: until `reap`, the kernel cannot reuse its id."""

    def __init__(self, pid: int, pipes: Pipes, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.output, self.reports, self.blobs = pipes.output, pipes.reports, pipes.blobs
        self.status: int | None = None
        self._request = pipes.request
        self._popen = popen

    def send(self, request: dict[str, Any]) -> None:
        # The child may be dead already; then its exit status shows why.
        with suppress(BrokenPipeError), open(self._request, "wb") as stdin:
            stdin.write(json.dumps(request).encode())

    def has_ended(self) -> bool:
        # Without reaping: a zombie keeps its id, so its process group can still be killed.
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True  # reaped by another thread

    def close(self) -> None:
        """Close the pipes of a child that was never sent a request."""
        for end in (self._request, self.output, self.reports):
            os.close(end)
        self.blobs.close()

    def wait_until_ended(self) -> None:
        """Wait until it has ended, at most 10 seconds."""
        deadline = time.monotonic() + _LINGER
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill it and all processes of its group."""
        if self.status is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for it. Return its exit status, or the negated number of the signal that killed it."""
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if self._popen is not None:
            self._popen.returncode = self.status
        return self.status


def execute(environment: Mapping[str, str]) -> Process:
    """Start a child without a template, so it does its own imports. It dies with the calling thread."""
    pipes = Pipes()
    try:
        popen = subprocess.Popen(
            [
                *(sys.executable, "-m", "lora_registry.processes.child"),
                *(str(number) for number in (pipes.reports_end, os.getpid(), pipes.ends[3])),
            ],
            stdin=pipes.request_end,
            stdout=pipes.output_end,
            stderr=subprocess.STDOUT,
            pass_fds=pipes.ends[2:],
            start_new_session=True,  # so that it can be killed as a group, and Ctrl-C reaches only the worker
            env=environment,
        )
    except BaseException:
        pipes.close()
        raise
    finally:
        pipes.close_ends()
    return Process(popen.pid, pipes, popen)
