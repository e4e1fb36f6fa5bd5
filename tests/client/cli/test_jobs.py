"""Merges and jobs by the command line."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_reg.formatting.text import short_id
from tests.support.command import TINY, Home, fresh
from tests.support.front import Answer, Front
from tests.support.service import InProcess

pytestmark = pytest.mark.worker


@pytest.fixture
def name(home: Home) -> str:
    name = f"{fresh()}/queries"
    home.ok("push", TINY / "adapters" / "queries-v1", "--base", "tiny", name)
    return name


def test_a_merge_waits_and_gives_a_version(home: Home, name: str, tmp_path: Path) -> None:
    done = home.json("merge", f"{name}=0.5", "--to", f"{name}-merged:candidate", "-m", "half")
    assert done["schema"] == "lora-reg/merge/1"
    assert (done["job"]["state"], done["version"]["kind"]) == ("done", "model")
    shown = home.json("show", f"{name}-merged:candidate")
    assert shown["digest"] == done["version"]["digest"]
    again = home.json("merge", f"{name}=0.5", "--to", f"{name}-merged")
    assert again["job"]["id"] == done["job"]["id"]
    assert again["version"]["digest"] == done["version"]["digest"]
    home.ok("pull", f"{name}-merged", "-o", tmp_path / "merged")
    local = home.json(
        "merge",
        "--local",
        "--base-dir",
        TINY / "base",
        f"{TINY / 'adapters' / 'queries-v1'}=0.5",
        "-o",
        tmp_path / "local",
    )
    assert local["schema"] == "lora-reg/merge-local/1"
    for path in (tmp_path / "merged").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "local" / path.name).read_bytes()


def test_detach_then_wait(home: Home, name: str) -> None:
    job = home.ok("merge", name, "--to", f"{name}-merged", "--detach", "-q").out.strip()
    waited = home.json("job", "wait", job)
    assert waited["items"][0]["state"] == "done"
    assert home.json("job", "show", job)["result"]["name"] == "queries-merged"
    assert job in home.ok("job", "list", "-q", "--kind", "merge").out.split()
    listed = home.ok("job", "list").out
    assert re.search(rf"^done +{name}-merged:v1 +{short_id(job)} ", listed, re.MULTILINE)
    assert "inspect" not in listed
    assert "inspect-" in home.ok("job", "list", "--all").out
    assert home.json("job", "show", short_id(job))["id"] == job
    logs = home.json("job", "logs", job)
    assert (logs["id"], logs["state"]) == (job, "done")
    assert logs["items"]
    followed = home.ok("job", "logs", job, "-f")
    assert len(followed.out.splitlines()) == len(logs["items"])


def held(answer: Answer) -> None:
    """A job that is running for ever, to those who look through the front."""
    if "/progress" in answer.path:
        answer.body, answer.status = b'{"state":"running","items":[]}', 200
        answer.headers = {"content-type": "application/json"}


def test_a_wait_that_runs_out_ends_with_status_8(home: Home, name: str, registry: InProcess) -> None:
    job = home.ok("merge", name, "--to", f"{name}-merged", "--detach", "-q").out.strip()
    with Front(registry.url, harm=held) as front:
        said = Home(home.folder, front.url).run("job", "wait", job, "--timeout", "0.3")
    assert said.status == 8
    assert f"lora-reg job wait {job}" in said.err


def test_an_interrupted_wait_leaves_the_job_and_says_how_to_go_on(home: Home, name: str, registry: InProcess) -> None:
    job = home.ok("merge", name, "--to", f"{name}-merged", "--detach", "-q").out.strip()
    with Front(registry.url, harm=held) as front:
        there = Home(home.folder, front.url)
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_reg.cli.main", "job", "wait", job],
            env=there.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while not front.log and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"lora-reg job wait {short_id(job)}" in err
    assert "Traceback" not in err
    home.ok("job", "wait", job)


def test_what_cannot_be_merged_is_refused(home: Home, name: str) -> None:
    assert home.run("merge", f"{name}:v9", "--to", f"{name}-merged").status == 3
    assert home.run("merge", name).status == 2
    assert home.run("merge", f"{name}=heavy", "--to", f"{name}-merged").status == 2
    assert home.run("merge", f"{name}=nan", "--to", f"{name}-merged").status == 2
    assert home.run("merge", name, "--to", f"{name}-merged:v3").status == 2
    assert home.run("merge", "--local", name).status == 2
    assert home.run("job", "show", "nothing").status == 3
    assert home.run("job", "wait", "nothing").status == 3


def test_a_local_merge_tells_what_is_wrong(home: Home, tmp_path: Path) -> None:
    base = TINY / "base"
    said = home.run("merge", "--local", "--base-dir", base, tmp_path / "nothing", "-o", tmp_path / "out")
    assert said.status == 2
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    said = home.run("merge", "--local", "--base-dir", base, TINY / "adapters" / "logs", "-o", tmp_path / "out")
    assert said.status == 5
    said = home.run(
        "merge", "--local", "--base-dir", base, TINY / "adapters" / "logs", "-o", tmp_path / "x", "--to", "a/b"
    )
    assert said.status == 2


def test_a_report_of_the_first_inspection(home: Home, name: str) -> None:
    deadline = time.monotonic() + 60
    while not (items := home.json("report", name)["items"]):
        assert time.monotonic() < deadline, "no report came"
        time.sleep(0.1)
    assert items[0]["passed"]
    assert items[0]["version"] == home.json("show", name)["digest"]
    assert "inspect  passed" in home.ok("report", name).out
