"""What an operator sees of `lora-registry`: Ctrl-C, and a sentence for each wrong setting."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lora_contract.errors import RegistryError
from lora_registry.cli import main
from lora_registry.settings import ServiceSettings, load
from tests.support import service


def command(data: Path, *arguments: str, **extra: str) -> Result:
    """One command in this process; it must end before it serves anything."""
    clean = {key: None for key in os.environ if key.startswith("LORA_REG_")}
    return CliRunner().invoke(main, arguments, env={**clean, "LORA_REG_DATA": str(data), **extra})


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_stops_the_service_and_its_worker_quietly(tmp_path: Path, processes: int) -> None:
    """A terminal sends SIGINT to every process of the foreground group."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_registry.cli", "serve", "--port", "0", "--workers", str(processes)],
            env=service.environment(tmp_path / "data"),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    worker = _wait_for_worker(process.pid, log)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert not Path(f"/proc/{worker}").exists()
    text = log.read_text()
    assert "Aborted" not in text
    assert "Traceback" not in text
    assert "started again" not in text
    assert text.count("takes jobs from") == 1


def test_sigterm_ends_the_service_with_status_0(tmp_path: Path) -> None:
    running = service.start(tmp_path / "data")
    assert running.stop() == 0


def test_a_killed_service_takes_its_worker_with_it(tmp_path: Path) -> None:
    """The worker runs in a session of its own, where no signal of the terminal reaches it."""
    running = service.start(tmp_path / "data", by=subprocess.Popen)
    worker = _wait_for_worker(running.process.pid, running.log)
    running.kill()
    for _ in range(200):
        if not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes():
            return
        time.sleep(0.05)
    raise AssertionError("the worker still runs")


def _wait_for_worker(parent: int, log: Path) -> int:
    for _ in range(600):
        for task in Path(f"/proc/{parent}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes() and "takes jobs from" in log.read_text():
                    return int(pid)
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize(
    ("extra", "status", "words"),
    [
        ({"DATABASE_URL": "postgres://me:geheim@db/registry"}, 2, "postgresql+psycopg://"),
        ({"DATABASE_URL": "somewhere"}, 2, "postgresql+psycopg://"),
        ({"DATABASE_URL": "postgresql+psycopg://me:geheim@127.0.0.1:9/registry"}, 10, "127.0.0.1:9"),
        ({"DATABASE_URL": "sqlite:////nowhere/at/all/registry.sqlite3"}, 10, "unable to open database file"),
        ({"LOG_LEVEL": "chatty"}, 2, "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
        ({"STORAGE_URL": "gs://bucket/prefix"}, 2, "s3://BUCKET/PREFIX"),
        ({"STORAGE_URL": "s3://"}, 2, "s3://BUCKET/PREFIX"),
        ({"PORT": "99999"}, 2, "LORA_REG_PORT"),
        ({"PORT": "http"}, 2, "LORA_REG_PORT"),
        ({"LEASE_SECONDS": "0"}, 2, "LORA_REG_LEASE_SECONDS"),
        ({"DATA": "{file}"}, 2, "is a file"),
        ({"DATA": "{file}/below"}, 2, "is a file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("name", ["serve", "check", "worker"])
def test_a_wrong_setting_is_a_sentence_a_hint_and_a_status(
    tmp_path: Path, name: str, extra: dict[str, str], status: int, words: str
) -> None:
    (tmp_path / "file").write_text("x")
    given = {f"LORA_REG_{key}": value.format(file=tmp_path / "file") for key, value in extra.items()}
    done = command(tmp_path / "data", name, **given)
    assert done.exit_code == status, done.stderr
    error, hint, *more = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert more == []
    assert words in done.stderr
    assert "geheim" not in done.stderr


def test_a_port_in_use_and_a_database_without_tables(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command(tmp_path / "data", "serve", "--port", str(taken.getsockname()[1]))
    assert (done.exit_code, done.stderr.count("\n")) == (10, 2)
    assert "hint: " in done.stderr
    for arguments in (("check",), ("worker",), ("fsck",), ("token", "create", "ci", "--role", "reader")):
        done = command(tmp_path / "new", *arguments)
        assert done.exit_code == 10, done.stderr
        assert "Run `lora-registry migrate`" in done.stderr.splitlines()[1]


def test_settings_are_checked_where_they_are_made() -> None:
    with pytest.raises(RegistryError, match="LORA_REG_PRESIGN_SECONDS"):
        load({"LORA_REG_PRESIGN_SECONDS": "-1"})
    assert ServiceSettings(log_level="debug").log_level == "DEBUG"
    assert ServiceSettings(database_url="postgresql+psycopg://me@db/registry").embedded is False


def test_the_data_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """It holds weights and the hashes of tokens."""
    assert command(tmp_path / "new", "migrate").exit_code == 0
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "old").mkdir(mode=0o755)
    assert command(tmp_path / "old", "migrate").exit_code == 0
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o755, "what exists is left to its owner"
