from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lora_contract.errors import RegistryError
from lora_registry.processes.children import Children


class Sink:
    """Keeps what it is told; a job that is taken away raises at `fails`."""

    def __init__(self, *, fails: bool = False) -> None:
        self.records: list[dict[str, Any]] = []
        self.logs: list[str] = []
        self.fails = fails

    def progress(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def log(self, text: str) -> None:
        self.logs.append(text)

    def alive(self) -> None:
        if self.fails:
            raise LookupError("not yours any more")


def _run(name: str, spec: dict[str, Any], sink: Sink, *, children: Children | None = None) -> Any:
    return (children or Children()).run(
        name=name, target=f"tests.registry.jobs.engine.handlers:{name}", spec=spec, sink=sink, timeout=30.0
    )


def _pid(journal: Path) -> int:
    import json

    while not journal.exists() or not journal.read_text():
        time.sleep(0.05)
    return int(json.loads(journal.read_text().splitlines()[0])["pid"])


def test_large_messages_pass_both_ways_and_progress_is_thinned_out() -> None:
    sink = Sink()
    text = "z" * 3_000_000
    assert _run("large", {"text": text}, sink) == {"back": text}
    assert sink.records[-1]["done"] == 1999
    assert len(sink.records) < 50


def test_what_a_child_started_does_not_keep_its_step_waiting() -> None:
    sink = Sink()
    begun = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        _run("with_offspring", {}, sink)
    assert time.monotonic() - begun < 20
    assert caught.value.facts == {"reason": "exit", "exit": 4}
    offspring = int(sink.logs[-1].split()[-1])
    deadline = time.monotonic() + 5
    while (status := Path(f"/proc/{offspring}/stat")).exists() and " Z " not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_taken_away_kills_its_silent_child(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with pytest.raises(LookupError):
        _run("execute", {"journal": str(journal), "tensors": 1, "pace": 60}, Sink(fails=True))
    assert not journal.exists() or not Path(f"/proc/{_pid(journal)}").exists()


def test_stop_kills_the_child_and_its_step_never_returns(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    children = Children()
    ended = threading.Event()

    def step() -> None:
        try:
            _run("execute", {"journal": str(journal), "tensors": 1, "pace": 60}, Sink(), children=children)
        finally:
            ended.set()

    threading.Thread(target=step, daemon=True).start()
    pid = _pid(journal)
    children.stop()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not ended.wait(1.0)
