"""The benchmark of GPUs, without one: its dry run goes through every stage but the clock, so that none breaks unseen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table
from benchmarks.gpu import counters, page
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.predictions import PREDICTIONS
from benchmarks.process import ROOT

SMI = """#!/bin/sh
case "$*" in
  *clocks_throttle*) exit 6 ;;
  *driver_version*) echo '580.159.03' ;;
  *--loop-ms*) while :; do echo '1755, 3201, 512.25, 45, 0x0000000000000001'; sleep 0.05; done ;;
  *clocks_event*) echo '0x0000000000000001' ;;
esac
"""
NCU = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
"$@" || exit 3
echo '==PROF== Disconnected'
echo '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
echo '"0","merge_low_rank_kernel","sm__inst_executed.sum","inst","1,234"'
"""


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_the_page_of_kernels_shows_predictions_and_what_was_measured(tmp_path: Path) -> None:
    assert table.shown((ROOT / "docs/kernels.md").read_text("utf-8")) == page.tables()
    assert "| merge 1 x rank 16 | 0.220 | 0.375 | 0.24 to 0.255 | not run | - |" in page.tables(tmp_path)
    journal = Journal(tmp_path / "gpu-some-card.jsonl", limit=10)
    for shape, again in ((page.LARGEST, False), (page.LARGEST, True), ([4096, 4096], False)):
        milliseconds = 0.25 if (shape, again) == (page.LARGEST, False) else 9.0
        journal.write(
            "time", case="merge 1 x rank 16", shape=shape, again=again, milliseconds=milliseconds, share_of_copy=0.881
        )
    journal.write("time", case="DoRA rank 16", shape=page.LARGEST, again=False, failure="out of memory")
    text = page.tables(tmp_path)
    assert "| merge 1 x rank 16 | 0.220 | 0.375 | 0.24 to 0.255 | 0.250 | 88% |" in text
    assert "| DoRA rank 16 | 0.329 | 0.7 | 0.27 to 0.36 | not run | - |" in text


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_dry_run_goes_through_every_stage(tmp_path: Path) -> None:
    """With only torch, Triton and numpy, as on the machine that has the GPU."""
    programs, absent = tmp_path / "bin", tmp_path / "absent"
    programs.mkdir()
    absent.mkdir()
    program(programs, "nvidia-smi", SMI)
    program(programs, "ncu", NCU.format(python=sys.executable))
    for package in ("msgspec", "safetensors", "transformers", "peft"):
        (absent / f"{package}.py").write_text("raise ImportError('not on the machine with the GPU')\n")
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (absent, ROOT / "kernels", ROOT / "client"))),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--dry", "--results", tmp_path / "results"],
        env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    lines = lines_of(tmp_path / "results" / "gpu-interpreter.jsonl")
    assert [json.loads(line) for line in done.stdout.splitlines()] == lines
    of_kind: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        of_kind.setdefault(line["kind"], []).append(line)
    assert list(of_kind) == ["environment", "ceiling", "matrix unit sum", "rate", "check", "time", "counters", "end"]
    assert of_kind["environment"][0]["driver"] == "580.159.03"
    assert {line["mix"] for line in of_kind["ceiling"]} >= {"copy", "read", "write", "read 1, write 4"}
    names = list(PREDICTIONS)
    checked = {name: [line["right"] for line in of_kind["check"] if line["case"] == name] for name in names}
    assert checked == {name: [True, True] for name in names}
    timed = [line["case"] for line in of_kind["time"]]
    assert sorted(timed[: len(names)]) == sorted(names)
    assert [line["case"] for line in of_kind["time"] if line["again"]] == [timed[0]] == [timed[len(names)]]
    others = timed[len(names) + 1 :]
    assert len(others) == 8
    assert {line["case"] for line in of_kind["check"]} == {*names, *others}
    for line in of_kind["time"]:
        assert "failure" not in line, line
        assert line["waits"] is None, line
        assert line["milliseconds"] is None
        assert line["bytes"] > 0
        if line["case"] in names:
            assert line["costs"]
            assert all(row["instructions"] > 0 for row in line["costs"].values())
            assert len(line["predicted_milliseconds"]) == 2
    cards = [line["card"] for line in of_kind["time"] if line["card"]]
    assert cards[0] == {
        "sm_mhz": [1755, 1755],
        "memory_mhz": [3201, 3201],
        "watts": [512.25, 512.25],
        "celsius": [45, 45],
        "throttle": ["0x0000000000000001"],
    }
    (counted,) = of_kind["counters"]
    assert counted["launches"] == [{"kernel": "merge_low_rank_kernel", "sm__inst_executed.sum": "1,234 inst"}]


def test_a_line_is_on_disk_before_the_next_thing_begins_and_nothing_begins_late(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    journal = Journal(path, limit=1000)
    journal.write("ceiling", bytes_per_second=4.2812345678e12)
    assert lines_of(path)[0]["bytes_per_second"] == 4.28123e12
    assert journal.may_begin("more")
    late = Journal(tmp_path / "late.jsonl", limit=0)
    assert not late.may_begin("merge 1 x rank 16")
    (line,) = lines_of(tmp_path / "late.jsonl")
    assert (line["kind"], line["what"]) == ("left out", "merge 1 x rank 16")


def test_a_wrong_result_is_reported_and_never_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import __main__ as run
    from benchmarks.gpu import cases, choices, place, timing

    def wrong() -> None:
        raise AssertionError("3 of 4 bytes differ")

    def case(name: str, check: Any) -> cases.Case:
        return cases.Case(name, lambda: None, lambda items: None, lambda item: 1, check, (), ())

    timed = []
    monkeypatch.setattr(choices, "choices", lambda place, shape: [])
    monkeypatch.setattr(run, "_ceilings", lambda *_: {})
    monkeypatch.setattr(cases, "cases", lambda place, shape: [case("good", lambda: None), case("bad", wrong)])
    monkeypatch.setattr(timing, "measure", lambda place, case, ceilings: timed.append(case.name) or {})
    path = tmp_path / "lines.jsonl"
    assert run._run(place.Dry(), Journal(path, 1000)) == 1
    assert set(timed) == {"good"}
    assert [line["failure"] for line in lines_of(path) if line["kind"] == "check" and line["case"] == "bad"] == [
        "AssertionError: 3 of 4 bytes differ"
    ] * 2
    assert lines_of(path)[-1]["wrong"] == ["bad"]


def test_counters_that_are_refused_leave_the_reason(tmp_path: Path) -> None:
    program(tmp_path, "ncu", "#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM' >&2\nexit 1\n")
    case = type("Case", (), {"name": "merge 1 x rank 16", "kernels": ("merge_low_rank_kernel",)})
    found = counters.read(str(tmp_path / "ncu"), case, dry=True, limit=20)
    assert "ERR_NVGPUCTRPERM" in found["failed"]
