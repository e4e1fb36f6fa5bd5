"""dataset, validate, policy, gate, approve and promote by the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_contract.wire.gates import CheckView, GateView
from lora_reg.formatting import github, junit
from tests.support.command import TINY, Home, fresh

pytestmark = pytest.mark.worker

DATA = TINY / "data" / "queries_eval.jsonl"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records enough to judge by, and few enough to be quick."""
    path = tmp_path_factory.mktemp("data") / "few.jsonl"
    path.write_bytes(b"".join(DATA.read_bytes().splitlines(keepends=True)[:30]))
    return path


def test_from_an_evaluation_set_to_a_tag(home: Home, few: Path, tmp_path: Path) -> None:
    space = fresh()
    name, data = f"{space}/queries", f"{space}/eval"
    added = home.ok("dataset", "add", data, few)
    assert added.out.startswith(f"{data}:v1  sha256:")
    assert data in home.ok("dataset", "list").out
    assert "records" in home.ok("dataset", "show", data).out
    for number in (1, 2):
        home.ok("push", TINY / "adapters" / f"queries-v{number}", name, "--base", "tiny")
    gated = home.ok("gate", f"{name}:v1", "--for", "prod", "--data", data)
    lines = gated.out.splitlines()
    assert lines[0] == "policy default; no other version is prod now"
    assert lines[-1].startswith(f"{name}:v1 may become prod: On {data} it is better than the base by ")
    assert f"next: lora-reg promote {name}:v1 prod" in gated.err
    assert (
        home.ok("promote", f"{name}:v1", "prod", "--data", data).out.splitlines()[-1].startswith(f"{name}:prod -> v1")
    )

    policy = tmp_path / "policy.toml"
    policy.write_text(f'name = "ours"\n[quality]\nsets = ["{data}"]\n')
    assert "policy ours, number 1" in home.ok("policy", "set", f"{space}/*:prod", policy).out
    assert f"{space}/*:prod" in home.ok("policy", "show").out
    assert '"name": "ours"' in home.ok("policy", "show", f"{space}/*:prod").out
    gated_tag = home.run("tag", f"{name}:v2", "prod")
    assert (gated_tag.status, "promote the version" in gated_tag.err) == (6, True)
    tried = home.ok("policy", "test", policy, name)
    assert [line.split()[:2] for line in tried.out.splitlines()[1:]] == [["v2", "not"], ["v1", "allowed"]]
    assert "--run" in tried.err
    validated = home.json("validate", f"{name}:v2", "--data", data, "--against", f"{name}:v1")
    assert (validated["schema"], validated["allowed"]) == ("lora-reg/validation/1", True)
    assert home.ok("policy", "test", policy, name).out.splitlines()[1].split()[:2] == ["v2", "allowed"]
    document = home.json("gate", f"{name}:v2", "--for", "prod")
    assert (document["schema"], document["allowed"], document["holder_number"]) == ("lora-reg/gate/1", True, 1)
    assert home.json("gate", f"{name}:v2", "--for", "prod", "--format", "json")["decision"] == document["decision"]
    shown = home.ok("report", f"{name}:v2").out
    assert f"quality  {data}:v1" in shown
    assert re.search(r"effect +passed", shown)
    assert "validate  measured  sha256:" in shown
    assert re.search(r"prod +allowed +ours +On ", shown)
    assert home.json("report", f"{name}:v2")["verdicts"][0]["decision"] is None  # a trial stores nothing
    strict = tmp_path / "strict.json"
    strict.write_text('{"name": "strict", "max_rank": 1}')
    refused = home.run("gate", f"{name}:v2", "--for", "prod", "--policy", strict)
    assert (refused.status, "the maximum is 1" in refused.out.splitlines()[-1]) == (6, True)
    assert home.run("promote", f"{name}:v2", "prod", "--expect", "v2").status == 5
    assert home.ok("promote", f"{name}:v2", "prod", "--expect", "v1", "-q").out == f"{name}:prod\n"
    assert "approved for prod" in home.ok("approve", f"{name}:v2", "--for", "prod").out
    assert home.ok("policy", "remove", f"{space}/*:prod").out == f"{space}/*:prod  removed\n"
    assert home.run("promote", f"{name}:v1", "prod", "--force").status == 2
    forced = home.ok("promote", f"{name}:v1", "prod", "--data", data, "--force", "--reason", "demo")
    assert "-> v1" in forced.out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["gate", "a/b"], 2, "--for"),
        (["gate", "a/b", "--for", "prod"], 3, "no repository"),
        (["gate", "a/b", "--for", "prod", "--format", "xml"], 2, "--format"),
        (["dataset", "add", "a/b", "nowhere.jsonl"], 2, "nowhere.jsonl"),
        (["dataset", "show", "tiny"], 5, "not dataset"),
        (["validate", "tiny"], 5, "only adapters"),
        (["validate", "a/b", "--local"], 2, "--base-dir"),
        (["policy", "set", "prod", "nowhere.toml"], 1, "nowhere.toml"),
    ],
)
def test_what_goes_wrong_is_told(home: Home, arguments: list[str], status: int, said: str) -> None:
    refused = home.run(*arguments)
    assert (refused.status, said in refused.err) == (status, True), refused.err


def test_a_file_that_is_no_evaluation_set_is_refused_by_its_line(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"words": "b"}\n')
    refused = home.run("dataset", "add", f"{fresh()}/bad", path)
    assert refused.status == 6
    assert "ine 2" in refused.err


HOSTILE = GateView(
    namespace="a", name="b", tag="prod", version="sha256:" + "0" * 64, number=1, base="sha256:" + "1" * 64, holder=None,
    holder_number=None, policy="sha256:" + "2" * 64, policy_name="p|<b>", policy_pattern=None, allowed=False,
    reason="100% ]]> \x1b[31m\n::error::more", checks=[CheckView("quality:x,y", "failed", "</failure>&\x00|\n::warning::x")],
)  # fmt: skip


def test_what_adapters_are_called_cannot_become_markup_or_commands() -> None:
    commands = github.workflow_commands(HOSTILE)
    assert len(commands) == 2
    assert all(line.startswith("::error title=") and "\n" not in line and "\x1b" not in line for line in commands)
    assert "quality%3Ax%2Cy::" in commands[0]
    row = next(line for line in github.summary(HOSTILE).splitlines() if "quality" in line)
    assert row.replace("\\|", "").count("|") == 4
    import xml.etree.ElementTree as ET

    (suite,) = ET.fromstring(junit.junit(HOSTILE).encode())
    assert suite.attrib["failures"] == "1"
