"""validate --local by the command line, on the example that the repository carries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import TINY, Home

BASE = TINY / "base"
QUERIES = TINY / "adapters" / "queries-v1"


@pytest.fixture
def alone(tmp_path: Path) -> Home:
    """A machine without any registry."""
    return Home(tmp_path / "home", "http://127.0.0.1:9")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "queries.jsonl"
    lines = [
        {"text": f"select name, count(*) from table_{n} where year = {1990 + n} group by name;\n"} for n in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_what_was_found_and_the_decision_are_told(alone: Home, data: Path) -> None:
    said = alone.run("validate", "--local", QUERIES, "--base-dir", BASE, "--data", data)
    assert said.status in (0, 6), said.err
    lines = said.out.splitlines()
    assert lines[0].split() == ["RULE", "WHAT", "WAS", "FOUND"]
    assert any("layer:effect" in line for line in lines)
    assert lines[-1].startswith("allowed" if said.status == 0 else "refused")
    assert "Loading weights" not in said.err


def test_a_policy_decides_and_json_holds_all_of_it(alone: Home, data: Path, tmp_path: Path) -> None:
    strict, lax = tmp_path / "strict.toml", tmp_path / "lax.json"
    strict.write_text('name = "strict"\n[quality.highest]\nqueries = 0.001\n')
    lax.write_text('{"name": "lax", "quality": {"better_than_base": false}, "skip": ["agreement"]}')
    refused = alone.run("validate", "--local", QUERIES, "--base-dir", BASE, "--data", data, "--policy", strict)
    assert refused.status == 6
    assert "refused by the policy strict" in refused.out
    found = alone.json("validate", "--local", QUERIES, "--base-dir", BASE, "--data", data, "--policy", lax)
    assert (found["schema"], found["allowed"], found["policy"]) == ("lora-reg/validate-local/1", True, "lax")
    assert found["report"]["layers"]["agreement"] == {
        "state": "skipped", "findings": [], "facts": {}, "reason": "the policy skips it."
    }  # fmt: skip
    assert len(found["report"]["evaluations"][0]["nats"]) == 12


def test_it_is_not_worse_than_itself(alone: Home, data: Path) -> None:
    found = alone.run(
        "validate", "--local", QUERIES, "--base-dir", BASE, "--data", data, "--against", QUERIES, "--json"
    ).document()
    holder = next(check for check in found["decision"]["checks"] if check["rule"] == "quality:queries:holder")
    assert holder["state"] == "passed"
    assert holder["evidence"]["difference"] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--base-dir", str(BASE)], 2, "--local"),
        (["--local"], 2, "--base-dir"),
        (["--local", "--base-dir", "nowhere"], 2, "There is no folder"),
        (["--local", "--base-dir", str(BASE), "--data", "nowhere.jsonl"], 1, "nowhere.jsonl"),
    ],
)
def test_what_is_missing_is_told(alone: Home, arguments: list[str], status: int, said: str) -> None:
    refused = alone.run("validate", QUERIES, *arguments)
    assert refused.status == status, refused.err
    assert said in refused.err


def test_a_policy_that_is_none_is_refused(alone: Home, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    for text, said in (("max_rank = 0", "malformed"), ("][", "no TOML")):
        path.write_text(text)
        refused = alone.run("validate", "--local", QUERIES, "--base-dir", BASE, "--policy", path)
        assert refused.status == 2, refused.err
        assert said in refused.err
