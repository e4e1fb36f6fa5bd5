"""A running service of the suite with what tests ask of it: a client, a base to push onto, names of their own."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from lora_contract.base import BaseFingerprint
from lora_contract.errors import ERRORS
from lora_contract.roles import Visibility, parse_grant
from lora_registry import admin, settings
from lora_registry.settings import ServiceSettings
from tests.support import service
from tests.support.adapters import BASE_ID, fingerprint_of_files, make_base, make_draft, read_folder
from tests.support.databases import migrated
from tests.support.forks import Forked
from tests.support.push import push

DATABASES = ("sqlite", "postgresql")
SHARED = "shared"
_numbers = itertools.count(1)


@functools.cache
def base_files() -> dict[str, bytes]:
    """A Llama of two layers in two files, 60 KB."""
    with tempfile.TemporaryDirectory() as folder:
        return read_folder(make_base(Path(folder), shards=2))


@functools.cache
def fingerprint() -> BaseFingerprint:
    return fingerprint_of_files(base_files())


def adapter_files(seed: int, **options: Any) -> dict[str, bytes]:
    """A random adapter for the base; another seed gives other bytes."""
    return make_draft(fingerprint(), rank=2, seed=seed, **options).files()


def unique(stem: str) -> str:
    """A name that no other test of this run has."""
    return f"{stem}-{os.getpid()}-{next(_numbers)}"


class Site:
    """A service, its database and its workers. `client` is an administrator's.

    The service is a process, or with `serve` a thread of this one. `worker` and `run` start processes either way.
    """

    def __init__(self, data: Path, database: str, extra: Mapping[str, str], arguments: tuple[str, ...]) -> None:
        self.data = data
        self.database = database
        self.extra = dict(extra)
        self.arguments = arguments
        self.workers: list[subprocess.Popen[bytes]] = []
        self.service: service.Service
        self.thread: service.InProcess | None = None
        self.client = httpx.Client()
        self._has_base = False

    @property
    def sqlite(self) -> bool:
        return self.database.startswith("sqlite")

    def start(self, fault: str | None = None, *, by: type[subprocess.Popen[Any]] = Forked) -> None:
        """Start the API; `fault` is armed in it alone, on PostgreSQL, and in what it starts on SQLite."""
        extra = {**self.extra, **({"LORA_REG_FAULT": fault} if fault else {})}
        self.service = service.start(self.data, extra=extra, arguments=self.arguments, by=by)
        self.client.close()
        self.client = self.connect()

    def serve(self) -> None:
        """Serve from a thread of this process; no worker comes with it."""
        self.thread = service.InProcess(self.data, self.extra)
        self.client.close()
        self.client = self.connect()

    @property
    def url(self) -> str:
        return self.thread.url if self.thread else self.service.url

    def connect(self, token: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=100)
        return httpx.Client(verify=False, base_url=self.url, timeout=60, headers=headers, limits=limits)

    def run(self, *arguments: str) -> str:
        """One command of `lora-registry` to its end."""
        command = Forked(
            [sys.executable, "-m", "lora_registry.cli", *arguments],
            env=service.environment(self.data, self.extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        output: str
        output, errors = command.communicate(timeout=120)
        assert command.returncode == 0, errors
        return output.strip()

    def config(self) -> ServiceSettings:
        return settings.load(service.environment(self.data, self.extra))

    def token(self, role: str, namespace: str | None = None) -> str:
        """A token with a name of its own, as `lora-registry token create` makes it."""
        return self.token_with(f"{role}:{namespace or '*'}")

    def token_with(self, *grants: str, name: str | None = None) -> str:
        """A token with several grants, such as `writer:acme`."""
        given = [parse_grant(text) for text in grants]
        return admin.create_token(self.config(), name=name or unique(given[0].role), grants=given)

    def visibility(self, namespace: str, visibility: Visibility) -> None:
        admin.set_visibility(self.config(), namespace, visibility)

    def worker(self, fault: str | None = None, name: str | None = None) -> subprocess.Popen[bytes]:
        """Start a job worker of its own."""
        extra = {**self.extra, **({"LORA_REG_FAULT": fault} if fault else {})}
        log = self.data / f"worker-{len(self.workers)}.log"
        with log.open("wb") as output:
            process = Forked(
                [sys.executable, "-m", "lora_registry.cli", "worker", *(["--name", name] if name else [])],
                env=service.environment(self.data, extra),
                stdout=output,
                stderr=output,
            )
        self.workers.append(process)
        return process

    def need_worker(self) -> None:
        """Have a worker: on SQLite a service that is a process keeps one itself."""
        if (self.thread or not self.sqlite) and not any(worker.poll() is None for worker in self.workers):
            self.worker()

    def stop(self) -> None:
        self.client.close()
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        if self.thread:
            self.thread.stop()
        elif hasattr(self, "service") and self.service.process.poll() is None:
            self.service.stop()

    # What tests push

    def need_base(self) -> None:
        if not self._has_base:
            self.base()
            self._has_base = True

    def base(self, client: httpx.Client | None = None) -> dict[str, Any]:
        """The base that all adapters of the suite pin, pushed once: `shared/base`."""
        answer = push(client or self.client, SHARED, "base", "base", base_files(), aliases=[BASE_ID])
        assert answer.status_code in (200, 201), answer.text
        result: dict[str, Any] = answer.json()["version"]
        return result

    def push(self, namespace: str, name: str, seed: int = 0, **commit: Any) -> httpx.Response:
        return push(self.client, namespace, name, "adapter", adapter_files(seed), base=f"{SHARED}/base", **commit)

    def pushed(self, namespace: str, name: str, seed: int = 0, **commit: Any) -> dict[str, Any]:
        """A version that was accepted."""
        answer = self.push(namespace, name, seed, **commit)
        assert answer.status_code in (200, 201), answer.text
        result: dict[str, Any] = answer.json()["version"]
        return result

    def repository(self, versions: int = 1) -> str:
        """The URL path of a fresh repository with so many versions, of seeds 1, 2, …"""
        name = unique("r")
        for seed in range(1, versions + 1):
            self.pushed("ns", name, seed)
        return f"/api/v1/repositories/ns/{name}"

    def until_job(self, job: str, *, seconds: float = 90) -> dict[str, Any]:
        """Wait for the end of a job; returns its view."""
        found: dict[str, Any] = {}

        def ended() -> bool:
            found.update(self.client.get(f"/api/v1/jobs/{job}").json())
            return found["state"] in ("done", "failed", "cancelled")

        until(ended, seconds=seconds, what=lambda: f"{found}\n{self.talk()}")
        return found

    def events(self, subject: str) -> list[dict[str, Any]]:
        """All events of a repository, in order."""
        items: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = self.client.get(
                "/api/v1/events", params={"limit": 1000, **({"after": after} if after else {})}
            ).json()
            items += page["items"]
            if not page["items"] or page["next_cursor"] == after:
                return [item for item in items if item["subject"].partition(":")[0] == subject]
            after = page["next_cursor"]

    def talk(self) -> str:
        return "\n".join(path.read_text("utf-8", "replace")[-3000:] for path in sorted(self.data.glob("*.log")))


def until(ready: Callable[[], bool], *, seconds: float = 30, what: Callable[[], str] = lambda: "") -> None:
    """Ask more rarely the longer it takes: the service that is asked often shares the processor with what it waits for."""
    began = time.monotonic()
    while not ready():
        passed = time.monotonic() - began
        if passed > seconds:
            raise TimeoutError(what())
        time.sleep(min(max(0.02, passed / 10), 0.3))


@contextmanager
def open_site(
    database: str,
    folder: Path,
    postgres_server: str,
    *,
    extra: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = (),
) -> Iterator[Site]:
    """A database of its own, with the service still to be started; all that the test starts ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = dict(extra or {})
    with ExitStack() as stack:
        url = f"sqlite:///{folder / 'registry.sqlite3'}"
        if database != "sqlite":
            url = stack.enter_context(migrated(postgres_server))
            chosen["LORA_REG_DATABASE_URL"] = url
        site = Site(folder, url, chosen, arguments)
        stack.callback(site.stop)
        yield site


def refuses_changes(database: str, *statements: str) -> None:
    """Check that the database itself refuses to change or delete rows that stay as they were written."""
    engine = sa.create_engine(database)
    try:
        for statement in statements:
            with pytest.raises(sa.exc.DatabaseError, match="stay as they were written"), engine.begin() as connection:
                connection.execute(sa.text(statement))
    finally:
        engine.dispose()


def problem(answer: httpx.Response, code: str) -> dict[str, Any]:
    """Check that an answer is the problem document of this code, as the table has it; returns it."""
    assert answer.headers["content-type"] == "application/problem+json", (answer.status_code, answer.text)
    body: dict[str, Any] = answer.json()
    assert (body["code"], answer.status_code) == (code, ERRORS[code].status), body
    assert body["status"] == answer.status_code
    assert body["detail"]
    assert body["hint"]
    assert body["retryable"] is ERRORS[code].retryable
    return body
