"""The messages of a child, and the error for its end without a result."""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from lora_contract.errors import RegistryError, known_code
from lora_registry.processes.process import Process

_MAX_LINE: Final = 64 * 1024 * 1024
_TAIL: Final = 4096
_TICK: Final = 0.1
_PROGRESS_EVERY: Final = 0.5
_ALIVE_EVERY: Final = 1.0


class JobSink(Protocol):
    """Receives a child's reports. Each call raises if the job is no longer ours; then the child is killed."""

    def progress(self, record: dict[str, Any]) -> None: ...

    def log(self, text: str) -> None: ...

    def alive(self) -> None: ...


class Stream:
    """Reads one child's pipe and output. tail: the end of its output."""

    def __init__(self, process: Process, sink: JobSink) -> None:
        self.tail = b""
        self._process = process
        self._sink = sink
        self._buffer = bytearray()
        self._latest: dict[str, Any] | None = None
        self._forwarded_at = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._selector.register(process.reports, selectors.EVENT_READ, self._read_reports)
        self._selector.register(process.output, selectors.EVENT_READ, self._read_output)
        self._outcome: dict[str, Any] | None = None

    def follow(self, *, timeout: float | None) -> dict[str, Any] | None:
        """Return `{"result"}` or `{"error"}`, or None if the process ended without either."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._outcome is None and self._selector.get_map():
            # Checked before reading, so that its last output is still read.
            ended = self._process.has_ended()
            ready = self._selector.select(0 if ended else _TICK)
            for key, _ in ready:
                read: Callable[[], None] = key.data
                read()
            self._forward()
            if deadline is not None and time.monotonic() > deadline:
                raise RegistryError(
                    "job-failed", f"The step exceeded its time limit of {timeout:g} seconds.", reason="timeout"
                )
            if ended and not ready:
                break  # a process that it started still holds its output
        if self._latest is not None:
            self._sink.progress(self._latest)
        return self._outcome

    def close(self) -> None:
        self._selector.close()
        os.close(self._process.reports)
        os.close(self._process.output)

    def _forward(self) -> None:
        now = time.monotonic()
        if self._latest is not None and now - self._forwarded_at >= _PROGRESS_EVERY:
            self._sink.progress(self._latest)
            self._latest, self._forwarded_at = None, now
        elif now - self._forwarded_at >= _ALIVE_EVERY:
            self._sink.alive()
            self._forwarded_at = now

    def _read_output(self) -> None:
        chunk = os.read(self._process.output, 65536)
        if not chunk:
            self._selector.unregister(self._process.output)
        self.tail = (self.tail + chunk)[-_TAIL:]

    def _read_reports(self) -> None:
        chunk = os.read(self._process.reports, 1 << 20)
        if not chunk:
            self._selector.unregister(self._process.reports)
            return
        searched = len(self._buffer)
        self._buffer += chunk
        while (end := self._buffer.find(b"\n", searched)) >= 0:
            line, self._buffer, searched = bytes(self._buffer[:end]), self._buffer[end + 1 :], 0
            self._handle(line)
        if len(self._buffer) > _MAX_LINE:
            raise unreadable(f"a message of more than {_MAX_LINE} bytes")

    def _handle(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise unreadable(repr(line[:80])) from error
        match message:
            case {"progress": dict() as record}:
                self._latest = record
            case {"log": str() as text}:
                self._sink.log(text)
            case {"result": _} | {"error": {"code": str(), "detail": str()}}:
                self._outcome = message
            case {"started": int()}:
                pass
            case _:
                raise unreadable(repr(line[:80]))


def unreadable(found: str) -> RegistryError:
    return RegistryError("job-failed", f"The child process sent an unreadable message: {found}.", reason="unreadable")


def child_error(error: dict[str, Any]) -> RegistryError:
    code = known_code(error["code"])
    if code is None:
        return unreadable(f"the error code {error['code']!r}")
    return RegistryError(code, error["detail"], hint=error.get("hint"), **error.get("facts", {}))


def exit_error(name: str, status: int, tail: bytes) -> RegistryError:
    if status < 0:
        killed = signal.Signals(-status).name
        cause = ", possibly because memory ran out" if status == -signal.SIGKILL else ""
        detail = f"The process of step {name} was killed by {killed}{cause}."
        return RegistryError("job-failed", detail, reason="signal", signal=killed)
    lines = tail.decode(errors="replace").strip().splitlines()
    last_line = f": {lines[-1]}" if lines else ""
    detail = f"The process of step {name} ended with exit status {status} without a result{last_line}."
    return RegistryError("job-failed", detail, reason="exit", exit=status)
