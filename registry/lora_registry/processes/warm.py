"""A warm process seen from outside: start it, have it fork children, and discard it when it fails."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from lora_registry.processes.attributes import child_subreaper
from lora_registry.processes.process import Pipes, Process
from lora_registry.processes.template import READY

_log = logging.getLogger(__name__)

READY_SECONDS: Final = 300.0
"""An import of torch and PEFT takes 10 seconds on an idle machine."""

FORK_SECONDS: Final = 20.0
"""A fork takes 20 ms. A template that takes longer is frozen, or the machine is out of memory."""

_POLL_SECONDS: Final = 1.0


class Template:
    """A warm process with some modules imported. Starts immediately, in the background; thread-safe."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.pid: int | None = None
        self.failed = False
        """True once it has died, frozen or refused to be forked: it forks no more children."""
        self.failed_at_start = False
        """True if it failed before it was ready: a new one with the same modules would fail too."""
        self._modules = tuple(modules)
        self._environment = {**environment, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._ready = False
        self._killed = False
        self._fork_lock = threading.Lock()
        self._kill_lock = threading.Lock()
        self._channel, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The process dies with the thread that starts it, so that thread stays and waits for it.
        threading.Thread(target=self._supervise, args=(child_end,), name="template", daemon=True).start()

    def fork(self, on_wait: Callable[[], None]) -> Process | None:
        """Fork a child; return None if the template has failed. on_wait: called about every second, may raise."""
        while not self._fork_lock.acquire(timeout=_POLL_SECONDS):
            on_wait()
        try:
            if self.failed or not self._wait_until_ready(on_wait):
                return None
            process = self._fork()
            if process is None:
                self._fail("it does not answer")
            return process
        finally:
            self._fork_lock.release()

    def kill(self) -> None:
        """Kill the process; its children live on."""
        with self._kill_lock:
            self._killed = True
            if self.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process and close the channel."""
        self.kill()
        self._channel.close()

    def _supervise(self, child_end: socket.socket) -> None:
        command = [sys.executable, "-m", "lora_registry.processes.template", str(child_end.fileno()), str(os.getpid())]
        with child_end, self._kill_lock:
            if self._killed:
                return
            process = subprocess.Popen(
                [*command, *self._modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(child_end.fileno(),),
                start_new_session=True,
                env=self._environment,
            )
            self.pid = process.pid
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._kill_lock:  # once it is reaped, its id may be reused
            self.pid = None
            process.wait()

    def _wait_until_ready(self, on_wait: Callable[[], None]) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready:
            if select.select([self._channel], [], [], _POLL_SECONDS)[0]:
                answer = b""
                with suppress(ConnectionError):
                    answer = self._channel.recv(1024)
                    self._ready = answer == READY
                if not self._ready:
                    self.failed_at_start = True
                    self._fail(answer.decode(errors="replace") or "it died at its start")
                    return False
            elif time.monotonic() > deadline:
                self.failed_at_start = True
                self._fail(f"it was not ready within {READY_SECONDS:g} seconds")
                return False
            else:
                on_wait()
        return True

    def _fork(self) -> Process | None:
        pipes = Pipes()
        try:
            with child_subreaper():
                try:
                    socket.send_fds(self._channel, [b"fork"], pipes.ends)
                finally:
                    pipes.close_ends()
                pid = pipes.started(FORK_SECONDS)
        except OSError:
            pid = None
        except BaseException:
            pipes.close()
            raise
        if pid is None:
            pipes.close()
            return None
        return Process(pid, pipes)

    def _fail(self, reason: str) -> None:
        if not self._killed:
            _log.warning("A warm process is discarded: %s (%s).", reason, ", ".join(self._modules))
        self.failed = True
        self.kill()
        self._channel.close()
