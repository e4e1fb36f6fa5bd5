"""validate --local by the command line, on the example that the repository carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import TINY, Home

BASE = ("--base-dir", TINY / "base")
DATA = ("--data", TINY / "data" / "queries_eval.jsonl")
FIRST, SECOND, THIRD = (TINY / "adapters" / f"queries-v{number}" for number in (1, 2, 3))


TASK = """
task: second_line
dataset_path: json
dataset_kwargs: {data_files: {test: lines.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{first}}"
doc_to_choice: ["| link depots as d on c.depot_id", "| order depots desc", "| take depots"]
doc_to_target: 0
target_delimiter: ""
"""
LINES = """{"first": "# the 3 depots by mean fee of couriers, per town\\nfrom couriers as c\\n"}
{"first": "# the 5 depots by summed fee of couriers, per zone\\nfrom couriers as c\\n"}
"""


@pytest.fixture
def alone(tmp_path: Path) -> Home:
    """A machine without any registry."""
    return Home(tmp_path / "home", "http://127.0.0.1:9")


def test_a_better_version_is_let_through(alone: Home) -> None:
    said = alone.ok("validate", "--local", SECOND, *BASE, *DATA, "--against", FIRST)
    lines = said.out.splitlines()
    assert lines[0].split() == ["RULE", "FINDINGS"]
    assert any(line.startswith("ok") and "layer:effect" in line for line in lines)
    assert any("better than the tag's current target" in line for line in lines)
    assert lines[-1].startswith("allowed by the policy default: On queries_eval it is better than the base")
    assert said.err == ""


def test_a_worse_one_is_refused(alone: Home) -> None:
    refused = alone.run("validate", "--local", THIRD, *BASE, *DATA, "--against", SECOND)
    assert refused.status == 6, refused.err
    assert "worse than the tag's current target" in refused.out
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


def test_tasks_are_shown_and_judged(alone: Home, tmp_path: Path) -> None:
    folder, policy = tmp_path / "tasks", tmp_path / "policy.toml"
    folder.mkdir()
    (folder / "second_line.yaml").write_text(TASK)
    (folder / "lines.jsonl").write_text(LINES)
    arguments = ("validate", "--local", SECOND, *BASE, "--tasks", folder, "--policy", policy)
    skip = 'skip = ["numbers", "agreement"]\n'
    policy.write_text(f"{skip}[behaviour]\ntasks = {{ 'second_line.acc' = 1.0 }}\n")
    said = alone.ok(*arguments).out
    lines = [line.split() for line in said.splitlines()]
    assert ["TASK", "METRIC", "BASE", "VALUE", "RECORDS"] in lines
    row = next(line for line in lines if line[:2] == ["second_line", "acc"])
    assert row[-4:] == ["1", "±", "0", "2"]
    assert "task:second_line.acc" in said
    assert "second_line.acc is 1 (base: " in said
    policy.write_text(f"{skip}[behaviour]\ntasks = {{ 'second_line.f1' = 0.5 }}\n")
    refused = alone.run(*arguments, "--json")
    assert refused.status == 6, refused.err
    assert refused.document["decision"]["allowed"] is None
    assert refused.document["report"]["tasks"]["second_line"]["metrics"]["acc"]["value"] == 1.0


def test_a_rank_beyond_the_policy_is_refused(alone: Home, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("max_rank = 1\n")
    refused = alone.run("validate", "--local", FIRST, *BASE, "--policy", path)
    assert refused.status == 6
    assert "the maximum is 1" in refused.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([*BASE], 2, "--base-dir cannot be used with a job"),
        (["--tasks", "somewhere"], 2, "--tasks needs --local"),
        (["--local", *BASE, "--tasks", "nowhere"], 2, "There is no folder"),
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
    for text, said in (("max_rank = 0", "malformed"), ("][", "not valid TOML")):
        path.write_text(text)
        refused = alone.run("validate", "--local", FIRST, *BASE, "--policy", path)
        assert refused.status == 2, refused.err
        assert said in refused.err
