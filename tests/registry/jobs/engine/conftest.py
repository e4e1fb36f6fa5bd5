from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlmodel import Session, col

from lora_registry.db.engine import make_engine
from lora_registry.db.tables.jobs import WorkerLease
from lora_registry.jobs.engine.client import DbosEngine, migrate
from lora_registry.jobs.engine.lease_store import create_table
from lora_registry.jobs.engine.port import JobStatus
from tests.registry.jobs.engine.handlers import KINDS, Outcome
from tests.support.forks import Forked
from tests.support.postgres import fresh_database

ROOT = Path(__file__).resolve().parents[4]
QUICK: dict[str, Any] = {"lease_seconds": 3.0, "beat_seconds": 0.5, "reap_seconds": 0.3, "poll_seconds": 0.1}


class Site:
    """One database with its service side, and the workers that a test starts on it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.database: Engine = make_engine(url)
        self.jobs = DbosEngine(self.database)
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, *, fault: str | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a worker with short leases; its talk goes to `worker-N.log`."""
        chosen = QUICK | options | {"fault": fault}
        with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
            worker = Forked(
                [sys.executable, "-m", "tests.registry.jobs.engine.program", self.url, json.dumps(chosen)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def doomed(self, faults: dict[str, str]) -> list[int]:
        """Start a worker per queue with its fault, let them all die, and return their exit statuses.

        Their leases are long, so that a busy machine makes none of them miss its fault, and are ended here.
        """
        chosen = QUICK | {"lease_seconds": 600.0}
        options = [chosen | {"queues": [queue], "fault": fault} for queue, fault in faults.items()]
        with (self.folder / "doomed.log").open("wb") as log:
            program = Forked(
                [sys.executable, "-m", "tests.registry.jobs.engine.program", self.url, json.dumps(options)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            output, _ = program.communicate(timeout=60)
            assert program.returncode == 0
        with self.database.begin() as connection:
            connection.execute(update(WorkerLease).values(lease_us=0))
        statuses: list[int] = json.loads(output)
        return statuses

    def journal(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.journal"

    def go(self, job_id: str) -> None:
        """End the steps of a job that wait for it."""
        Path(f"{self.journal(job_id)}.go").touch()

    def enqueue(self, job_id: str, *, kind: str = "full", queue: Any = "cpu", **spec: Any) -> None:
        with Session(self.database) as session:
            self.jobs.enqueue(
                session,
                KINDS[kind],
                {"journal": str(self.journal(job_id)), **spec},
                job_id=job_id,
                queue=queue,
            )
            session.commit()

    def state(self, job_id: str) -> str:
        status = self.jobs.status(job_id)
        return "absent" if status is None else status.state

    def ended(self, job_id: str, *, within: float = 30.0) -> JobStatus:
        """Wait for the end of a job."""
        self.until(lambda: self.state(job_id) in ("done", "failed", "cancelled"), within=within)
        status = self.jobs.status(job_id)
        assert status is not None
        return status

    def recorded(self, job_id: str) -> set[str]:
        """Names of the steps whose results or errors are recorded."""
        table = "operation_outputs" if self.url.startswith("sqlite") else "dbos.operation_outputs"
        ended = text(f"SELECT function_name FROM {table} WHERE workflow_uuid = :job")
        with self.database.connect() as connection:
            return set(connection.execute(ended.bindparams(job=job_id)).scalars())

    def rows(self, job_id: str) -> int:
        """Committed results of a job."""
        with Session(self.database.execution_options(read_only=True)) as session:
            return session.scalar(select(func.count()).select_from(Outcome).where(col(Outcome.job_id) == job_id)) or 0

    def until(self, happened: Callable[[], bool], *, within: float = 30.0) -> float:
        """Wait for it and return the seconds it took."""
        begun = time.monotonic()
        while not happened():
            if time.monotonic() - begun > within:
                raise AssertionError(f"did not happen in {within} s\n{self.talk()}")
            time.sleep(0.05)
        return time.monotonic() - begun

    def talk(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))

    def freeze(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGSTOP a worker at a moment when it does not hold SQLite's write lock, which would stop everybody."""
        while True:
            worker.send_signal(signal.SIGSTOP)
            if not self.url.startswith("sqlite"):
                return
            probe = sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=0.3, isolation_level=None)
            with closing(probe):
                try:
                    probe.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError:
                    worker.send_signal(signal.SIGCONT)
                    time.sleep(0.03)

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGKILL)
            worker.wait()
        self.jobs.close()
        self.database.dispose()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(dialect, URL) of a migrated database that each test copies."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('template') / 'registry.db'}"
        else:
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server")))
        migrate(url)
        engine = make_engine(url)
        create_table(engine)
        Outcome.metadata.create_all(engine)
        engine.dispose()
        yield request.param, url


@contextmanager
def fresh_site(template: tuple[str, str], request: pytest.FixtureRequest, folder: Path) -> Iterator[Site]:
    dialect, url = template
    with ExitStack() as stack:
        if dialect == "sqlite":
            copy = folder / "registry.db"
            shutil.copy(url.removeprefix("sqlite:///"), copy)
            fresh = f"sqlite:///{copy}"
        else:
            fresh = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server"), template=url))
        site = Site(fresh, folder)
        stack.callback(site.close)
        yield site


@pytest.fixture
def site(template: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A database of its own; the test starts the workers."""
    with fresh_site(template, request, tmp_path) as site:
        yield site


@pytest.fixture(scope="module")
def running(
    template: tuple[str, str], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A site with one healthy worker, shared by the tests of a module."""
    with fresh_site(template, request, tmp_path_factory.mktemp("site")) as site:
        site.worker(concurrency={"cpu": 4, "gpu": 1}, queues=["cpu"])
        yield site
