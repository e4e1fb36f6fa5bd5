"""The real service on a free port, over a data folder or given databases.

`start` and `running` start `lora-registry serve`, a process with a job worker beside it on SQLite. `in_process` serves
the same application from a thread of the test process and starts nothing else: for tests of what routes do.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from lora_registry import settings
from lora_registry.app import create_app
from lora_registry.http.connections import Connection
from lora_registry.wiring import open_context
from tests.support.databases import sqlite_in
from tests.support.forks import Forked

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join(str(ROOT / folder) for folder in ("client", "registry", "kernels"))
READY_SECONDS = 60.0


@dataclass(slots=True)
class Service:
    """A running service. `environment` is what it was started with; `log` is the file of its output."""

    url: str
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: Path

    def kill(self) -> None:
        """SIGKILL the API process; its worker dies with it."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def environment(data: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a service on this data folder: nothing of LORA_REG_* from outside, our sources on the path."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LORA_REG_")}
    ours = {
        "PYTHONPATH": PYTHONPATH,
        "LORA_REG_DATA": str(data),
        "LORA_REG_PRELOAD": os.environ.get("LORA_REG_PRELOAD", "true"),
        "OMP_NUM_THREADS": "1",
    }
    return {**clean, **ours, **(extra or {})}


def start(
    data: Path,
    *,
    extra: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    wait: bool = True,
    by: type[subprocess.Popen[Any]] = Forked,
) -> Service:
    """Start the service and wait until it is ready. Raises AssertionError with its output where it is not.

    by: what starts the process. A forked one has imported more than it needs.
    """
    data.mkdir(parents=True, exist_ok=True)
    env = environment(data, extra)
    log = data / f"serve-{time.time_ns()}.log"
    with log.open("wb") as output:
        process = by(
            [sys.executable, "-m", "lora_registry.cli", "serve", "--port", "0", *arguments],
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    service = Service("", process, env, log)
    deadline, answer = time.monotonic() + READY_SECONDS, "no answer"
    while wait and time.monotonic() < deadline:
        text = log.read_text("utf-8", "replace")
        if process.poll() is not None:
            break
        if not service.url and "serves http://" in text:
            service.url = text.split("serves ", 1)[1].split(" ", 1)[0]
        if service.url:
            try:
                ready = httpx.get(service.url + "/readyz", timeout=5)
                if ready.status_code == 200:
                    return service
                answer = ready.text
            except httpx.TransportError as error:
                answer = repr(error)
        time.sleep(0.05)
    if not wait:
        return service
    process.kill()
    raise AssertionError(f"The service did not become ready ({answer}):\n{log.read_text('utf-8', 'replace')}")


@contextmanager
def running(data: Path, **options: object) -> Iterator[Service]:
    """A service for the length of a block."""
    service = start(data, **options)  # type: ignore[arg-type]
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()


class InProcess:
    """The service in a thread. On SQLite too it has no worker: start one on the same data folder where jobs must run."""

    def __init__(self, data: Path, extra: Mapping[str, str] | None = None) -> None:
        if "LORA_REG_DATABASE_URL" not in (extra or {}):
            sqlite_in(data)
        self.environment = environment(data, extra)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.context = open_context(settings.load(self.environment, port=port))
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_app(self.context),
                http=Connection,
                loop="uvloop",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=10,
                timeout_keep_alive=75,
            )
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, name="service")
        self._thread.start()
        deadline = time.monotonic() + READY_SECONDS
        while not self._server.started:
            assert self._thread.is_alive(), "the service ended"
            assert time.monotonic() < deadline, "the service did not become ready"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive(), "the service does not end"


@contextmanager
def in_process(data: Path, extra: Mapping[str, str] | None = None) -> Iterator[InProcess]:
    """The service in a thread for the length of a block."""
    service = InProcess(data, extra)
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def worker(service: InProcess, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A job worker beside a service that is a thread, for the length of a block."""
    with log.open("ab") as output:
        process = Forked(
            [sys.executable, "-m", "lora_registry.cli", "worker", "--parent", str(os.getpid())],
            env=service.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
