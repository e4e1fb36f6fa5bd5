"""The service as a process and a database: what it loads, what it is set by, how it gets its tables."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from lora_registry.db import migrate, revision
from lora_registry.db.engine import make_engine
from lora_registry.jobs.engine import client as engine_client
from lora_registry.settings import PREFIX, ServiceSettings
from tests.registry.site import DATABASES, Site, open_site
from tests.support.postgres import fresh_database

ROOT = Path(__file__).resolve().parents[2]
CLIENT = {
    f"{PREFIX}{name}"
    for name in ("SERVER", "TOKEN", "TOKEN_FILE", "ID_TOKEN", "NAMESPACE", "CACHE", "OFFLINE", "KEY_PASSPHRASE")
}


def _maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_the_api_process_holds_no_tensor_library(
    tmp_path: Path, postgres_server: str, database: str, record_property: pytest.RecordProperty
) -> None:
    with open_site(database, tmp_path, postgres_server) as site:
        site.start(by=subprocess.Popen)
        site.need_base()
        site.repository()
        pid = site.service.process.pid
        loaded = {Path(line.split()[-1]).name for line in _maps(pid).splitlines() if ".so" in line}
        assert any("uvloop" in str(line) or "loop" in str(line) for line in loaded)
        for name in ("torch", "numpy", "/safetensors/", "transformers"):
            assert name not in _maps(pid), name
        status = Path(f"/proc/{pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])  # type: ignore[index]
    record_property("api_resident_mb", resident / 1024)


@pytest.mark.parametrize("kind", DATABASES)
def test_migrations_make_the_tables_that_the_code_has(kind: str, tmp_path: Path, postgres_server: str) -> None:
    if kind == "sqlite":
        _migrate(f"sqlite:///{tmp_path / 'registry.sqlite3'}")
    else:
        with fresh_database(postgres_server) as url:
            _migrate(url)


def _migrate(url: str) -> None:
    engine = make_engine(url)
    try:
        assert not revision.is_current(engine)
        migrate.upgrade(engine)
        assert revision.is_current(engine)
        engine_client.migrate(url)
        assert migrate.difference(engine) == []
        before = set(sa.inspect(engine).get_table_names())
        migrate.upgrade(engine)
        engine_client.migrate(url)
        assert set(sa.inspect(engine).get_table_names()) == before
    finally:
        engine.dispose()


def test_the_page_of_settings_lists_them_all_and_no_other() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    service, client = page.split("## The client")
    ours = {PREFIX + field.name.upper() for field in dataclasses.fields(ServiceSettings)} | {f"{PREFIX}CONFIG"}
    assert set(re.findall(r"^\| `(LORA_REG_\w+)`", service, re.MULTILINE)) == ours
    assert set(re.findall(r"^\| `(LORA_REG_\w+)`", client, re.MULTILINE)) == CLIENT


def test_api_processes_die_with_the_one_that_started_them(tmp_path: Path) -> None:
    """An orphan would go on answering on the port, with nobody to stop it."""
    site = Site(tmp_path, f"sqlite:///{tmp_path / 'registry.sqlite3'}", {}, ("--workers", "2"))
    site.start()
    parent = site.service.process.pid
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    assert children
    site.service.kill()
    site.client.close()
    gone = [_gone(pid) for pid in children]
    assert all(gone), children


def test_an_api_process_that_is_slow_for_a_while_keeps_its_requests(tmp_path: Path) -> None:
    """On a busy machine a process may not run for seconds; killed, it would take the requests of its clients with it."""
    site = Site(tmp_path, f"sqlite:///{tmp_path / 'registry.sqlite3'}", {}, ("--workers", "2"))
    site.start()
    parent = site.service.process.pid
    children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    stopped = [pid for pid in children if b"multiprocessing.spawn" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(stopped) == 2
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(site.client.get, "/healthz")
            time.sleep(7)
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            assert answer.result().status_code == 200
        assert not [pid for pid in stopped if not Path(f"/proc/{pid}").exists()]
    finally:
        site.service.stop()
        site.client.close()


def _gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    os.kill(pid, 9)
    return False
