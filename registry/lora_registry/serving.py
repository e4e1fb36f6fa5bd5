"""`lora-registry serve`: the API processes and, on the embedded default, a job worker."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Final

import click
import uvicorn
from uvicorn.supervisors import Multiprocess

from lora_contract.errors import RegistryError
from lora_contract.startup import importing
from lora_registry.admin import migrate
from lora_registry.app import create_app
from lora_registry.db import revision
from lora_registry.db.engine import make_engine, require_connection
from lora_registry.http.admission import is_loopback
from lora_registry.http.connections import Connection
from lora_registry.processes.attributes import die_with_parent
from lora_registry.settings import ServiceSettings, environment, load
from lora_registry.wiring import open_context

log = logging.getLogger(__name__)

INTERRUPTED: Final = 130


def serve(settings: ServiceSettings, *, processes: int) -> int:
    """Listen until SIGINT or SIGTERM, then stop the worker. Return the exit status: 130 after SIGINT, else 0."""
    settings.check_exposure()
    if settings.auth != "none" and settings.public_url is None and not is_loopback(settings.host):
        log.warning(
            "LORA_REG_PUBLIC_URL is not set: Hub clients that reach the service by a host name see only the first page "
            "of a list."
        )
    settings.make_data_folder()
    if settings.embedded:
        migrate(settings)
    else:
        engine = make_engine(settings.resolved_database_url)
        require_connection(engine)
        revision.require_current(engine)
        engine.dispose()
    listener = _listen(settings)
    settings = replace(settings, port=listener.getsockname()[1])
    os.environ.update(environment(settings))
    config = uvicorn.Config(
        "lora_registry.serving:application",
        factory=True,
        http=Connection,
        loop="uvloop",  # with several workers, uvicorn on asyncio leaves Nagle's algorithm on: 44 ms per request
        log_level="warning",
        access_log=False,
        server_header=False,
        workers=processes,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,  # with 5 seconds, pooled connections were reset while a busy client used them
        timeout_worker_healthcheck=60,  # with 5 seconds, processes on a busy machine were killed with their requests
    )
    api: _Server | _Processes = _Processes(config, [listener]) if processes > 1 else _Server(config, listener)
    stopping = threading.Event()
    supervisor = None
    if settings.embedded:
        supervisor = threading.Thread(target=_supervise_worker, args=(settings, stopping), name="worker-supervisor")
        supervisor.start()
    click.echo(
        f"lora-registry serves http://{settings.host}:{settings.port} (data in {settings.data.resolve()})", err=True
    )
    try:
        api.run()
    finally:
        stopping.set()
        if supervisor is not None:
            supervisor.join(timeout=10)
    return INTERRUPTED if api.interrupted else 0


class _Server(uvicorn.Server):
    """A single API process: this one.

    uvicorn stops on a signal and then raises it again for the previous handler. That handler is ours: the default one
    would end the process before its worker has stopped.
    """

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener = listener
        self.interrupted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: object) -> None:
        self.should_exit = True
        self.interrupted = self.interrupted or number == signal.SIGINT

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._listener])


class _Processes(Multiprocess):
    """Several API processes under this one."""

    interrupted = False

    def handle_int(self) -> None:
        self.interrupted = True
        super().handle_int()


def application() -> object:
    """Create the ASGI application from the settings in the environment. Called in each API process."""
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        # A process that outlives `serve` would keep the port open.
        die_with_parent(parent.pid, sent=signal.SIGTERM)
    with importing():  # a collection of all that the application consists of takes 100 ms, in which nothing is answered
        return create_app(open_context(load()))


def _listen(settings: ServiceSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise RegistryError(
            "unavailable",
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}.",
            hint="Stop the process that uses the port, or choose another port with --port.",
        ) from error
    listener.set_inheritable(True)
    return listener


def _supervise_worker(settings: ServiceSettings, stopping: threading.Event) -> None:
    """Keep one worker process running beside the API, and restart it if it dies."""
    command = [sys.executable, "-m", "lora_registry.cli", "worker", "--parent", str(os.getpid())]
    while not stopping.is_set():
        # Started by this thread, which lives as long as the service: a worker dies with the thread that forked it.
        # In its own session: Ctrl-C in a terminal reaches only `serve`, which then stops the worker.
        process = subprocess.Popen(
            command, env={**os.environ, **environment(settings)}, close_fds=True, start_new_session=True
        )
        while process.poll() is None and not stopping.wait(0.2):
            pass
        if stopping.is_set():
            process.terminate()
            try:
                process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                process.kill()
            return
        log.warning("The job worker ended with status %s and will be restarted.", process.returncode)
        stopping.wait(1.0)
