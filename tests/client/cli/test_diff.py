"""diff, reproduce, what a yank tells, and pictures, by the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support.command import TINY, Home, fresh

pytestmark = pytest.mark.worker

FIRST, SECOND = (TINY / "adapters" / f"queries-v{number}" for number in (1, 2))
DATA = TINY / "data" / "queries_eval.jsonl"


@pytest.fixture
def name(home: Home) -> str:
    name = f"{fresh()}/queries"
    home.ok("push", FIRST, name, "--base", "tiny")
    home.ok("push", SECOND, name, "--base", "tiny")
    return name


def test_a_diff_tells_files_config_modules_and_losses(home: Home, name: str, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join(DATA.read_bytes().splitlines(keepends=True)[:10]))
    home.ok("dataset", "add", f"{name}-eval", few)
    for number in (1, 2):
        home.run("validate", f"{name}:v{number}", "--data", f"{name}-eval")
    told = home.ok("diff", f"{name}:v1", f"{name}:v2").out
    assert re.search(r"^sha256:\w{12}  sha256:\w{12}  adapter_model.safetensors$", told, re.MULTILINE)
    assert f"{name}-eval:v1" in told
    assert "and 16 modules that changed less" in told
    document = home.json("diff", f"{name}:v1", f"{name}:v2")
    assert document["schema"] == "lora-reg/diff/1"
    here = home.json("diff", "--local", FIRST, SECOND)
    assert here["comparison"]["modules"] == document["comparison"]["modules"]
    assert len(document["losses"]) == 1
    assert document["losses"][0]["high"] < 0
    lineage = home.json("lineage", f"{name}:v1")
    assert {(edge["parent"], edge["relation"]) for edge in lineage["edges"]} >= {(f"{name}-eval:v1", "evaluated-on")}


def test_pictures_are_drawn(home: Home, name: str, tmp_path: Path) -> None:
    for suffix, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        file = tmp_path / f"changes.{suffix}"
        drawn = home.ok("diff", "--local", FIRST, SECOND, "--plot", file)
        assert f"plot written to {file}" in drawn.err
        assert file.read_bytes().startswith(magic)
    assert b"down_proj" in (tmp_path / "changes.svg").read_bytes()
    losses = tmp_path / "losses.svg"
    drawn = home.ok(
        "validate", "--local", FIRST, "--base-dir", TINY / "base", "--data", DATA, "--plot", losses,
    )  # fmt: skip
    assert f"plot written to {losses}" in drawn.err
    assert b"nats per token, 95% interval" in losses.read_bytes()
    assert b"LineCollection" in losses.read_bytes()  # the bars of the intervals
    refused = home.run("diff", "--local", FIRST, SECOND, "--plot", tmp_path / "changes.gif")
    assert (refused.status, ".png" in refused.err) == (2, True)


@pytest.mark.parametrize("how", ["resize", "merge"])
def test_a_derived_version_is_reproduced(home: Home, name: str, how: str) -> None:
    made = f"{name}-{how}"
    options = ["--rank", "2"] if how == "resize" else ["--dtype", "float32"]
    home.ok(how, f"{name}:v1", *options, "--to", made)
    told = home.ok("reproduce", made)
    assert told.out.splitlines()[-1] == f"{made}:v1  reproduced"
    assert home.json("reproduce", made)["reproduced"] is True
    pushed = home.run("reproduce", f"{name}:v1")
    assert (pushed.status, "it has no recipe" in pushed.err) == (5, True)
    kinds = [report["kind"] for report in home.json("report", made)["items"]]
    assert kinds.count("reproduce") == 2


def test_a_yank_tells_what_depends_on_the_version(home: Home, name: str) -> None:
    home.ok("resize", f"{name}:v1", "--rank", "2", "--to", f"{name}-small")
    home.ok("tag", f"{name}:v1", "prod")
    told = home.ok("yank", f"{name}:v1", "--reason", "wrong data").err
    assert "the tag prod points to this version" in told
    assert f"1 version made from it: {name}-small:v1" in told


def test_an_adapter_that_lacks_modules_and_one_of_another_type(home: Home, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(FIRST, other)
    config = json.loads((other / "adapter_config.json").read_text())
    config["peft_type"] = "IA3"
    (other / "adapter_config.json").write_text(json.dumps(config))
    refused = home.run("diff", "--local", FIRST, other)
    assert refused.status == 6
