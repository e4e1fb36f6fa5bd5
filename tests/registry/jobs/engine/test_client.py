"""The client side: no worker runs here."""

from __future__ import annotations

import ast
import contextlib
import inspect
import socket
import sqlite3
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from dbos import DBOS
from dbos._utils import retriable_postgres_exception
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy import inspect as inspect_database
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_registry.db.engine import _mark_failed_connect, count_failed_connects_as_lost, make_engine
from lora_registry.jobs.engine.client import DbosEngine, migrate
from tests.registry.jobs.engine.conftest import Site
from tests.registry.jobs.engine.handlers import KINDS, Outcome


def test_a_job_exists_if_and_only_if_its_transaction_commits(site: Site) -> None:
    def enqueue(session: Session) -> None:
        session.add(Outcome(job_id="a", pid=0))
        site.jobs.enqueue(session, KINDS["full"], {"journal": "x"}, job_id="a")

    with Session(site.database) as session:
        enqueue(session)
        session.rollback()
    assert site.jobs.status("a") is None
    with Session(site.database) as session:
        enqueue(session)
        session.commit()
    status = site.jobs.status("a")
    assert status is not None
    assert (status.state, status.kind, status.queue, status.attempts) == ("queued", "full", "cpu", 0)
    assert site.rows("a") == 1


def test_the_same_id_is_the_same_job(site: Site) -> None:
    site.enqueue("a", mark=1)
    with Session(site.database) as session:
        site.jobs.enqueue(session, KINDS["full"], {"mark": 2}, job_id="a")
        session.add(Outcome(job_id="a", pid=0))  # the transaction is still good
        session.commit()
    assert site.rows("a") == 1
    assert [status.id for status in site.jobs.list()] == ["a"]
    inputs = (
        site.database.connect().execute(text(f"SELECT inputs FROM {_table(site, 'workflow_input')}")).scalars().all()
    )
    assert len(inputs) == 1
    assert '"mark":1' in inputs[0]


def test_racing_clients_make_one_job(site: Site) -> None:
    gate = threading.Barrier(8)

    def race() -> None:
        gate.wait()
        site.enqueue("a")

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status.id for status in site.jobs.list()] == ["a"]


def test_an_id_does_not_change_its_kind(site: Site) -> None:
    site.enqueue("a")
    with pytest.raises(RegistryError) as caught:
        site.enqueue("a", kind="flaky")
    assert caught.value.code == "conflict"


def test_list_is_newest_first_and_pages_without_loss(site: Site) -> None:
    for number in range(5):
        site.enqueue(f"a{number}", kind="full" if number % 2 else "flaky")
        time.sleep(0.6)
    assert [status.id for status in site.jobs.list(kind="full")] in (["a3", "a1"], ["a1", "a3"])
    seen: list[str] = []
    before = None
    while page := site.jobs.list(limit=1, before=before):
        seen.extend(status.id for status in page)
        before = page[-1].created_at
    assert sorted(seen) == ["a0", "a1", "a2", "a3", "a4"]
    assert seen.index("a4") < seen.index("a0")
    site.jobs.cancel("a2")
    assert [status.id for status in site.jobs.list(state="cancelled")] == ["a2"]
    assert {status.id for status in site.jobs.list(state="queued")} == {"a0", "a1", "a3", "a4"}
    assert site.jobs.list(state="done") == []


def test_a_queued_job_is_cancelled_and_started_again_on_its_queue(site: Site) -> None:
    site.enqueue("a", queue="gpu")
    site.jobs.cancel("a")
    site.jobs.cancel("a")
    assert site.state("a") == "cancelled"
    site.jobs.retry("a")
    status = site.jobs.status("a")
    assert status is not None
    assert (status.state, status.queue) == ("queued", "gpu")
    queue = site.database.connect().execute(text(f"SELECT queue_name FROM {_table(site, 'workflow_status')}")).scalar()
    assert queue == "gpu"
    with pytest.raises(RegistryError) as caught:
        site.jobs.retry("a")
    assert caught.value.code == "conflict"


def test_unknown_jobs_are_not_found(site: Site) -> None:
    assert site.jobs.status("a") is None
    for call in (site.jobs.cancel, site.jobs.retry, lambda job: list(site.jobs.follow(job))):
        with pytest.raises(RegistryError) as caught:
            call("a")
        assert caught.value.code == "not-found"


def test_follow_ends_after_a_silence(site: Site) -> None:
    site.enqueue("a")
    begun = time.monotonic()
    assert list(site.jobs.follow("a", timeout=0.5)) == []
    assert 0.4 < time.monotonic() - begun < 5


def test_nothing_is_pickled(site: Site) -> None:
    site.enqueue("a")
    kinds = (
        site.database.connect().execute(text(f"SELECT serialization FROM {_table(site, 'workflow_status')}")).scalars()
    )
    assert set(kinds) == {"portable_json"}


def test_what_we_use_of_the_engine_beyond_its_documented_interface_is_still_there() -> None:
    """`_recover_pending_workflows` is what Conductor calls; without it a dead worker's jobs would stay for ever."""
    assert version("dbos").startswith("3.4.")
    assert list(inspect.signature(DBOS._recover_pending_workflows).parameters) == ["executor_ids"]


def test_the_table_of_transaction_checkpoints_is_what_retry_expects(site: Site) -> None:
    with site.database.connect() as connection:
        found = connection.execute(
            text(f"SELECT workflow_id, step_id, error, output FROM {_table(site, 'datasource_outputs')}")
        )
        assert found.all() == []


def test_migrate_can_be_repeated_and_raced(tmp_path: Path, postgres_url: str) -> None:
    for url in (f"sqlite:///{tmp_path / 'fresh.db'}", postgres_url):
        threads = [threading.Thread(target=migrate, args=(url,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        migrate(url)
        jobs = DbosEngine(url)
        assert jobs.list() == []
        jobs.close()


def test_migrate_waits_for_who_has_the_file(tmp_path: Path) -> None:
    """SQLite does not wait by itself where the journal is to be another one, whatever its timeout."""
    path = tmp_path / "fresh.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE something (id INTEGER)")
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO something VALUES (1)")
    timer = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    timer.start()
    try:
        migrate(f"sqlite:///{path}")
    finally:
        timer.join()
        other.close()
    with contextlib.closing(sqlite3.connect(path)) as after:
        assert after.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_alembic_leaves_the_tables_of_the_engine_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fresh.db'}"
    migrate(url)
    engine = create_engine(url)
    tables = set(inspect_database(engine).get_table_names())
    engine.dispose()
    source = (Path(__file__).resolve().parents[4] / "alembic" / "env.py").read_text()
    named = next(
        node.value.args[0]
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ENGINE_TABLES"
        if isinstance(node.value, ast.Call)
    )
    assert tables == ast.literal_eval(named)


def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    jobs = DbosEngine(f"sqlite:///{tmp_path / 'absent' / 'x.db'}")
    with pytest.raises(RegistryError) as caught:
        jobs.status("a")
    assert caught.value.code == "unavailable"
    jobs.close()


def _table(site: Site, name: str) -> str:
    return f"dbos.{name}" if site.url.startswith("postgresql") else name


@pytest.mark.parametrize("host", ["nosuch.invalid", "socket"])
def test_a_database_that_cannot_be_reached_for_a_moment_fails_no_job(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job engine repeats what it takes for an error of the connection, and fails the job with any other."""
    if host == "socket":  # of a server that has died
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(".s.PGSQL.5432")
        host = str(tmp_path)
    count_failed_connects_as_lost()
    try:
        with pytest.raises(OperationalError) as raised:
            make_engine(f"postgresql+psycopg://x@/x?host={host}").connect()
    finally:
        event.remove(Engine, "handle_error", _mark_failed_connect)
    assert retriable_postgres_exception(raised.value)
