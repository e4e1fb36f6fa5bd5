"""The outside of child processes: start one, pass on what it reports, and say clearly how it ended."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn, Protocol

from lora_contract.errors import RegistryError, known_code
from lora_registry.runtime.faults import fault_point

_MAX_LINE: Final = 64 * 1024 * 1024
_TAIL: Final = 4096
_TICK: Final = 0.1
_PROGRESS_EVERY: Final = 0.5
_ALIVE_EVERY: Final = 1.0
_LINGER: Final = 10.0


class Sink(Protocol):
    """Where a child's reports go. Each call raises where the job is no longer ours: then the child is killed."""

    def progress(self, record: dict[str, Any]) -> None: ...

    def log(self, text: str) -> None: ...

    def alive(self) -> None: ...


class Children:
    """The child processes of this worker. `stop()` kills them all and lets no step go on after that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def run(self, *, name: str, target: str, spec: dict[str, Any], sink: Sink, timeout: float | None) -> Any:
        """Run `module:function` in a process of its own and return its result.

        Must be called from the thread of the step: the kernel ties the child's life to the thread that forked it.
        timeout: seconds, None for no limit. Raises the RegistryError of the function, or `job-failed` with
        `reason` (signal, exit, timeout, unreadable, memory) where the process ended without one.
        """
        reading, writing = os.pipe()
        try:
            with self._lock:
                if self._stopping:
                    _park()
                process = subprocess.Popen(
                    [sys.executable, "-m", "lora_registry.jobs.child", str(writing), str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writing,),
                    start_new_session=True,  # so that it can be killed with what it started; Ctrl-C is for the worker
                )
                self._running.add(process)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        fault_point(f"jobs.child.{name}.started")
        stream = _Stream(process, reading, sink)
        try:
            _send(process, {"target": target, "spec": spec})
            outcome = stream.follow(timeout=timeout)
            if outcome is not None:
                _let_end(process)  # exit handlers may have something to write
        finally:
            with self._lock:
                self._running.discard(process)
            _kill(process)
            process.wait()
            stream.close()
            with self._lock:
                stopping = self._stopping
            if stopping:
                _park()
        if stream.tail:
            sink.log(stream.tail.decode(errors="replace").strip())
        if outcome is None:
            raise _ended(name, process.returncode, stream.tail)
        if "error" in outcome:
            raise _reported(outcome["error"])
        return outcome["result"]

    def stop(self) -> None:
        """Kill every child and see it dead. Their steps never return, so nothing is recorded for them."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
            for process in running:
                _kill(process)
        for process in running:
            _let_end(process)


class _Stream:
    """Reads one child's pipe and output."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int, sink: Sink) -> None:
        assert process.stdout is not None
        self.tail = b""
        self._process = process
        self._reading = reading
        self._output = process.stdout
        self._sink = sink
        self._buffer = bytearray()
        self._newest: dict[str, Any] | None = None
        self._told = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._selector.register(reading, selectors.EVENT_READ, self._read_pipe)
        self._selector.register(self._output, selectors.EVENT_READ, self._read_output)
        self._outcome: dict[str, Any] | None = None

    def follow(self, *, timeout: float | None) -> dict[str, Any] | None:
        """`{"result"}` or `{"error"}`; None where the process ended without either."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._outcome is None and self._selector.get_map():
            # Asked before reading: what it wrote before its end is then still read.
            ended = _has_ended(self._process)
            ready = self._selector.select(0 if ended else _TICK)
            for key, _ in ready:
                read: Callable[[], None] = key.data
                read()
            self._tell()
            if deadline is not None and time.monotonic() > deadline:
                raise RegistryError(
                    "job-failed", f"The work took longer than its limit of {timeout:g} seconds.", reason="timeout"
                )
            if ended and not ready:
                break  # something it started still holds its output
        if self._newest is not None:
            self._sink.progress(self._newest)
        return self._outcome

    def close(self) -> None:
        self._selector.close()
        os.close(self._reading)
        self._output.close()

    def _tell(self) -> None:
        now = time.monotonic()
        if self._newest is not None and now - self._told >= _PROGRESS_EVERY:
            self._sink.progress(self._newest)
            self._newest, self._told = None, now
        elif now - self._told >= _ALIVE_EVERY:
            self._sink.alive()
            self._told = now

    def _read_output(self) -> None:
        chunk = os.read(self._output.fileno(), 65536)
        if not chunk:
            self._selector.unregister(self._output)
        self.tail = (self.tail + chunk)[-_TAIL:]

    def _read_pipe(self) -> None:
        chunk = os.read(self._reading, 1 << 20)
        if not chunk:
            self._selector.unregister(self._reading)
            return
        searched = len(self._buffer)
        self._buffer += chunk
        while (end := self._buffer.find(b"\n", searched)) >= 0:
            line, self._buffer, searched = bytes(self._buffer[:end]), self._buffer[end + 1 :], 0
            self._take(line)
        if len(self._buffer) > _MAX_LINE:
            raise _unreadable(f"a message of more than {_MAX_LINE} bytes")

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise _unreadable(repr(line[:80])) from error
        match message:
            case {"progress": dict() as record}:
                self._newest = record
            case {"log": str() as text}:
                self._sink.log(text)
            case {"result": _} | {"error": {"code": str(), "detail": str()}}:
                self._outcome = message
            case _:
                raise _unreadable(repr(line[:80]))


def _send(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert process.stdin is not None
    # It may be dead already; then its exit status says why.
    with suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(json.dumps(request).encode())


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    # Without reaping it: while it is a zombie nobody else can get its number, and what it started can be killed by it.
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # reaped by the thread that waits for it


def _let_end(process: subprocess.Popen[bytes]) -> None:
    """Wait a moment for its end."""
    deadline = time.monotonic() + _LINGER
    while not _has_ended(process) and time.monotonic() < deadline:
        time.sleep(0.01)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it and all that it started. It must not have been waited for."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _park() -> NoReturn:
    """Wait for the end of this process: the step must not be recorded, neither as done nor as failed."""
    while True:
        time.sleep(3600)


def _unreadable(found: str) -> RegistryError:
    return RegistryError("job-failed", f"The child process sent something unreadable: {found}.", reason="unreadable")


def _reported(error: dict[str, Any]) -> RegistryError:
    code = known_code(error["code"])
    if code is None:
        return _unreadable(f"the error code {error['code']!r}")
    return RegistryError(code, error["detail"], hint=error.get("hint"), **error.get("facts", {}))


def _ended(name: str, status: int, tail: bytes) -> RegistryError:
    if status < 0:
        killed = signal.Signals(-status).name
        cause = ", as the kernel does where memory has run out" if status == -signal.SIGKILL else ""
        detail = f"The process of step {name} was killed by {killed}{cause}."
        return RegistryError("job-failed", detail, reason="signal", signal=killed)
    lines = tail.decode(errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    detail = f"The process of step {name} ended with exit status {status} and without a result{said}."
    return RegistryError("job-failed", detail, reason="exit", exit=status)
