"""Children are forked from a warm process, and nothing is lost when that process is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lora_contract.errors import RegistryError
from lora_registry.processes import warm
from lora_registry.processes.children import Children
from tests.registry.processes.test_children import Sink

ROOT = Path(__file__).resolve().parents[3]
WORK = "tests.registry.processes.work"


@pytest.fixture
def children() -> Iterator[Children]:
    found = Children([(WORK, "numpy")])
    yield found
    for pid in found.templates():
        os.kill(pid, signal.SIGKILL)


def run(children: Children, target: str, spec: dict[str, Any] | None = None, *, sink: Sink | None = None) -> Any:
    name = target.partition(":")[2]
    return children.run(name=name, target=target, spec=spec or {}, sink=sink or Sink(), timeout=60.0)


def look(children: Children, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = run(children, f"{WORK}:look", spec)
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def until(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begun(file: Path) -> int:
    until(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


def waiting(children: Children, folder: Path) -> Callable[[], int]:
    """Start a child that waits in a thread of its own; returns how to let it go and have its result."""
    spec = {"begun": str(folder / "begun"), "go": str(folder / "go")}
    pool = ThreadPoolExecutor(1)
    result = pool.submit(run, children, f"{WORK}:wait", spec)

    def go() -> int:
        (folder / "go").touch()
        pool.shutdown()
        found: int = result.result()
        return found

    return go


def test_children_are_forked_with_their_imports_done(children: Children) -> None:
    first, second = look(children), look(children)
    (template,) = children.templates()
    for found in (first, second):
        assert found["forked"]
        assert found["pid"] not in (template, os.getpid())
        assert found["parent"] == os.getpid()
        assert found["session"] == found["pid"]
        assert found["threads"] == 1
        assert all(path.startswith(("pipe:", "/proc/")) for path in found["descriptors"]), found["descriptors"]
        assert gone(found["pid"])
    assert first["random"] != second["random"]
    assert first["numpy"] != second["numpy"]


def test_preloaded_modules_are_imported_before_the_first_child(children: Children) -> None:
    children.preload()
    until(lambda: len(children.templates()) == 1)
    before = children.templates()
    assert look(children)["forked"]
    assert children.templates() == before


def test_a_child_has_no_way_to_the_database_and_none_to_a_hub(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_REG_DATABASE_URL", "postgresql://someone:secret@host/registry")
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("LORA_REG_STORAGE_URL", "s3://bucket")
    for name in ("AWS_SECRET_ACCESS_KEY", "LORA_REG_TOKEN", "LORA_REG_CONFIG", "HF_TOKEN", "ANYTHING_ELSE"):
        monkeypatch.setenv(name, "secret")
    found = look(children)["environment"]
    assert "secret" not in json.dumps(found)
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["LORA_REG_STORAGE_URL"] == "s3://bucket"


def test_what_children_start_is_not_in_the_template(children: Children) -> None:
    assert run(children, f"{WORK}:threads") >= 4
    (template,) = children.templates()
    assert len(os.listdir(f"/proc/{template}/task")) == 1
    assert look(children)["threads"] == 1
    assert children.templates() == [template]


def test_two_children_run_side_by_side(children: Children, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    ends = [waiting(children, folder) for folder in folders]
    pids = [begun(folder / "begun") for folder in folders]
    assert len(set(pids)) == 2
    assert len(children.templates()) == 1
    assert [end() for end in ends] == pids


def test_a_child_outlives_its_template_and_the_next_has_a_new_one(children: Children, tmp_path: Path) -> None:
    end = waiting(children, tmp_path)
    pid = begun(tmp_path / "begun")
    (template,) = children.templates()
    os.kill(template, signal.SIGKILL)
    until(lambda: children.templates() == [])
    assert not gone(pid)
    assert end() == pid
    run(children, f"{WORK}:look")  # the one that finds out is started without a template
    assert look(children)["forked"]
    assert children.templates() != [template]


def test_a_frozen_template_is_given_up(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    look(children)
    (template,) = children.templates()
    monkeypatch.setattr(warm, "FORK_SECONDS", 0.5)
    os.kill(template, signal.SIGSTOP)
    assert not look(children)["forked"]
    until(lambda: gone(template))
    monkeypatch.setattr(warm, "FORK_SECONDS", 20.0)
    assert look(children)["forked"]


@pytest.mark.parametrize("module", ["threaded", "with_cuda"])
def test_a_process_that_must_not_be_forked_is_not(module: str, caplog: pytest.LogCaptureFixture) -> None:
    children = Children()
    target = f"tests.registry.processes.{module}:look"
    assert not run(children, target)["forked"]
    until(lambda: children.templates() == [])
    assert not run(children, target)["forked"]
    assert children.templates() == []
    assert len(caplog.records) == 1
    assert ("CUDA" if module == "with_cuda" else "2 threads") in caplog.text


def test_a_module_that_cannot_be_imported_is_the_error_of_the_child(children: Children) -> None:
    sink = Sink()
    with pytest.raises(RegistryError) as caught:
        run(children, "tests.registry.processes.absent:look", sink=sink)
    assert caught.value.facts == {"reason": "exit", "exit": 1}
    assert "No module named 'tests.registry.processes.absent'" in caught.value.detail


def test_a_job_taken_away_while_its_template_starts_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_POLL_SECONDS", 0.0)
    children = Children()
    with pytest.raises(LookupError):
        run(children, f"{WORK}:look", sink=Sink(fails=True))
    assert not children._running
    assert look(children)["forked"]


def test_nothing_is_left_of_a_worker_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from lora_registry.processes.children import Children\n"
        "from tests.registry.processes.test_children import Sink\n"
        f"children = Children([({WORK!r},)])\n"
        "print('up', flush=True)\n"
        f"children.run(name='wait', target={WORK + ':wait'!r}, spec={{'begun': sys.argv[1], 'go': '/absent'}}, sink=Sink(), timeout=None)\n"
    )
    file = tmp_path / "begun"
    worker = subprocess.Popen([sys.executable, "-c", program, str(file)], cwd=ROOT, stdout=subprocess.PIPE)
    with worker:
        pid = begun(file)
        tasks = Path(f"/proc/{worker.pid}/task").iterdir()
        started = {int(one) for task in tasks for one in (task / "children").read_text().split()}
        assert pid in started
        assert len(started) == 2  # and the template
        worker.kill()
    until(lambda: all(gone(one) for one in started), 10.0)


def test_stop_ends_the_templates_as_well(children: Children, tmp_path: Path) -> None:
    spec = {"begun": str(tmp_path / "begun"), "go": str(tmp_path / "go")}
    threading.Thread(target=run, args=(children, f"{WORK}:wait", spec), daemon=True).start()
    pid = begun(tmp_path / "begun")
    (template,) = children.templates()
    children.stop()
    until(lambda: gone(pid) and gone(template), 5.0)
