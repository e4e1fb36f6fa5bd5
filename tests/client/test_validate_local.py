"""validate --local by the command line, on the example that the repository carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import TINY, Home

BASE = ("--base-dir", TINY / "base")
DATA = ("--data", TINY / "data" / "queries_eval.jsonl")
FIRST, SECOND, THIRD = (TINY / "adapters" / f"queries-v{number}" for number in (1, 2, 3))


@pytest.fixture
def alone(tmp_path: Path) -> Home:
    """A machine without any registry."""
    return Home(tmp_path / "home", "http://127.0.0.1:9")


def test_a_better_version_is_let_through(alone: Home) -> None:
    said = alone.ok("validate", "--local", SECOND, *BASE, *DATA, "--against", FIRST)
    lines = said.out.splitlines()
    assert lines[0].split() == ["RULE", "WHAT", "WAS", "FOUND"]
    assert any(line.startswith("ok") and "layer:effect" in line for line in lines)
    assert any("better than the version that holds the tag" in line for line in lines)
    assert lines[-1].startswith("allowed by the policy default: On queries_eval it is better than the base")
    assert said.err == ""


def test_a_worse_one_is_refused(alone: Home) -> None:
    refused = alone.run("validate", "--local", THIRD, *BASE, *DATA, "--against", SECOND)
    assert refused.status == 6, refused.err
    assert "worse than the version that holds the tag" in refused.out
    assert refused.out.splitlines()[-1].startswith("refused by the policy default")


def test_a_policy_decides_and_json_holds_all_of_it(alone: Home, tmp_path: Path) -> None:
    strict, lax = tmp_path / "strict.toml", tmp_path / "lax.json"
    strict.write_text('name = "strict"\n[quality.highest]\nqueries_eval = 0.001\n')
    lax.write_text('{"name": "lax", "quality": {"better_than_base": false}, "skip": ["agreement"]}')
    refused = alone.run("validate", "--local", FIRST, *BASE, *DATA, "--policy", strict)
    assert refused.status == 6
    assert "refused by the policy strict: Loss" in refused.out
    found = alone.json("validate", "--local", FIRST, *BASE, *DATA, "--policy", lax)
    assert (found["schema"], found["allowed"], found["policy"]) == ("lora-reg/validation/1", True, "lax")
    assert found["report"]["layers"]["agreement"] == {
        "state": "skipped", "findings": [], "facts": {}, "reason": "the policy skips it."
    }  # fmt: skip
    evaluation = found["report"]["evaluations"][0]
    assert len(evaluation["nats"]) == len(evaluation["base_nats"]) == len(evaluation["tokens"]) > 8


def test_a_rank_beyond_the_policy_is_refused(alone: Home, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("max_rank = 1\n")
    refused = alone.run("validate", "--local", FIRST, *BASE, "--policy", path)
    assert refused.status == 6
    assert "at most 1 is allowed" in refused.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([*BASE], 2, "--base-dir does not go with a job"),
        (["--local"], 2, "--base-dir"),
        (["--local", "--base-dir", "nowhere"], 2, "There is no folder"),
        (["--local", *BASE, "--data", "nowhere.jsonl"], 1, "nowhere.jsonl"),
    ],
)
def test_what_is_missing_is_told(alone: Home, arguments: list[str], status: int, said: str) -> None:
    refused = alone.run("validate", FIRST, *arguments)
    assert refused.status == status, refused.err
    assert said in refused.err


def test_a_policy_that_is_none_is_refused(alone: Home, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    for text, said in (("max_rank = 0", "malformed"), ("][", "no TOML")):
        path.write_text(text)
        refused = alone.run("validate", "--local", FIRST, *BASE, "--policy", path)
        assert refused.status == 2, refused.err
        assert said in refused.err
