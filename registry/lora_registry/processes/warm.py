"""The outside of a warm process: start one, have it fork children, and give it up when it fails."""

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

from lora_registry.processes.attributes import adopting
from lora_registry.processes.process import Pipes, Process
from lora_registry.processes.template import READY

_log = logging.getLogger(__name__)

READY_SECONDS: Final = 300.0
"""An import of torch and PEFT takes 10 seconds on an idle machine."""

FORK_SECONDS: Final = 20.0
"""A fork takes 20 ms. A template that takes longer is frozen, or the machine is out of memory."""

_ASK_EVERY: Final = 1.0


class Template:
    """A warm process with some modules imported. Starts at once, in the background; may be used by several threads."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.pid: int | None = None
        self.failed = False
        """True once it has died, frozen or refused to be forked: it gives no more children."""
        self.unfit = False
        """Whether it failed before it was ready: another one of the same modules would as well."""
        self._modules = tuple(modules)
        self._environment = {**environment, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._ready = False
        self._killed = False
        self._turn = threading.Lock()
        self._killing = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The kernel ties its life to the thread that starts it, which therefore stays to wait for it.
        threading.Thread(target=self._hold, args=(theirs,), name="template", daemon=True).start()

    def fork(self, waiting: Callable[[], None]) -> Process | None:
        """A child; None if the template has failed. waiting: called about every second, may raise."""
        while not self._turn.acquire(timeout=_ASK_EVERY):
            waiting()
        try:
            if self.failed or not self._wait_until_ready(waiting):
                return None
            process = self._fork()
            if process is None:
                self._fail("does not answer")
            return process
        finally:
            self._turn.release()

    def kill(self) -> None:
        """End it. Its children live on."""
        with self._killing:
            self._killed = True
            if self.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, when nothing uses it any more."""
        self.kill()
        self._channel.close()

    def _hold(self, theirs: socket.socket) -> None:
        command = [sys.executable, "-m", "lora_registry.processes.template", str(theirs.fileno()), str(os.getpid())]
        with theirs, self._killing:
            if self._killed:
                return
            process = subprocess.Popen(
                [*command, *self._modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=self._environment,
            )
            self.pid = process.pid
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._killing:  # once it is reaped, its number may be another's
            self.pid = None
            process.wait()

    def _wait_until_ready(self, waiting: Callable[[], None]) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready:
            if select.select([self._channel], [], [], _ASK_EVERY)[0]:
                answer = b""
                with suppress(ConnectionError):
                    answer = self._channel.recv(1024)
                    self._ready = answer == READY
                if not self._ready:
                    self.unfit = True
                    self._fail(answer.decode(errors="replace") or "it died while it started")
                    return False
            elif time.monotonic() > deadline:
                self.unfit = True
                self._fail(f"it was not ready within {READY_SECONDS:g} seconds")
                return False
            else:
                waiting()
        return True

    def _fork(self) -> Process | None:
        pipes = Pipes()
        try:
            with adopting():
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
            _log.warning("A warm process is given up: %s (%s).", reason, ", ".join(self._modules))
        self.failed = True
        self.kill()
        self._channel.close()
