"""`lora-registry serve`: the API processes, and on the embedded default a job worker beside them."""

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

import click
import uvicorn
from uvicorn.supervisors import Multiprocess

from lora_contract.errors import RegistryError
from lora_registry.admin import migrate
from lora_registry.app import create_app
from lora_registry.db import migrate as schema
from lora_registry.db.engine import make_engine
from lora_registry.jobs.child import die_with_parent
from lora_registry.settings import Settings, environment, load
from lora_registry.wiring import open_context

log = logging.getLogger(__name__)


def serve(settings: Settings, *, processes: int) -> None:
    """Listen until SIGINT or SIGTERM."""
    settings.check_exposure()
    settings.data.mkdir(parents=True, exist_ok=True)
    if settings.embedded:
        migrate(settings)
    else:
        schema.require_current(make_engine(settings.resolved_database_url))
    listener = _listen(settings)
    settings = replace(settings, port=listener.getsockname()[1])
    os.environ.update(environment(settings))
    stopping = threading.Event()
    supervisor = None
    if settings.embedded:
        supervisor = threading.Thread(target=_supervise_worker, args=(settings, stopping), name="worker-supervisor")
        supervisor.start()
    click.echo(
        f"lora-registry serves http://{settings.host}:{settings.port} (data in {settings.data.resolve()})", err=True
    )
    config = uvicorn.Config(
        "lora_registry.serving:application",
        factory=True,
        loop="uvloop",  # asyncio leaves Nagle's algorithm on where uvicorn runs several workers: 44 ms a request
        log_level="warning",
        access_log=False,
        server_header=False,
        workers=processes,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=75,  # at 5 seconds, pooled connections were reset under a busy client's hands
    )
    try:
        if processes > 1:
            Multiprocess(config, sockets=[listener]).run()
        else:
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        stopping.set()
        if supervisor is not None:
            supervisor.join(timeout=10)


def application() -> object:
    """The ASGI application for settings of the environment: what each API process calls."""
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        # With several processes: one that outlived `serve` would keep the port and answer, with nobody to stop it.
        die_with_parent(parent.pid, sent=signal.SIGTERM)
    return create_app(open_context(load()))


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        raise RegistryError(
            "unavailable",
            f"Port {settings.port} of {settings.host} cannot be listened on: {error.strerror}.",
            hint="Stop what listens there, or give another `--port`.",
        ) from error
    listener.set_inheritable(True)
    return listener


def _supervise_worker(settings: Settings, stopping: threading.Event) -> None:
    """Keep one worker process alive beside the API; a worker that dies is started again."""
    command = [sys.executable, "-m", "lora_registry.cli", "worker", "--parent", str(os.getpid())]
    while not stopping.is_set():
        # Started from this thread, which lives as long as the service: a worker dies with the thread that forked it.
        process = subprocess.Popen(command, env={**os.environ, **environment(settings)}, close_fds=True)
        while process.poll() is None and not stopping.wait(0.2):
            pass
        if stopping.is_set():
            process.terminate()
            try:
                process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                process.kill()
            return
        log.warning("The job worker ended with status %s and is started again.", process.returncode)
        stopping.wait(1.0)
