"""Expected answers: what meets them, and a real adapter that is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_contract.dataset import Expectation, check_dataset
from lora_contract.errors import RegistryError
from lora_contract.policy import Behaviour, GateFacts, Policy, decide
from lora_kernels.validating import EvaluationSet, Subject, validate
from lora_kernels.validating.behaviour import meets
from tests.support.command import TINY

SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 2}}}


@pytest.mark.parametrize(
    ("answer", "expect", "met"),
    [
        (" 42 \n", {"exact": "42"}, True),
        ("42.", {"exact": "42"}, False),
        ("yes, 42", {"regex": "yes.*[0-9]+"}, True),
        ("yes, 42!", {"regex": "yes.*[0-9]+"}, False),
        ('{"a": 2} and so on', {"json_schema": SCHEMA}, True),
        ('{"a": 1}', {"json_schema": SCHEMA}, False),
        ('{"a": 2', {"json_schema": SCHEMA}, False),
        ("{}", {"json_schema": {"$ref": "http://127.0.0.1:9/schema.json"}}, False),
        ("{}", {"json_schema": {"type": 5}}, False),
        ('"' + "a" * 40 + '"', {"json_schema": {"pattern": "^(a+)+b$"}}, False),
    ],
)
def test_what_meets_an_expectation(answer: str, expect: dict[str, Any], met: bool) -> None:
    assert meets(answer, Expectation(**expect)) is met


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"prompt": "a", "expect": {}}'], "one of exact, regex and json_schema"),
        (['{"prompt": "a", "expect": {"exact": "b", "regex": "b"}}'], "one of exact, regex and json_schema"),
        (
            ['{"prompt": "a", "expect": {"sounds_like": "b"}}'],
            "has an invalid `expect`: Object contains unknown field `sounds_like`",
        ),
        (['{"prompt": 1, "expect": {"exact": "b"}}'], "needs a prompt that is a string"),
        (['{"prompt": "a", "expect": {"regex": "(?<=a)b"}}'], "expects an unsupported pattern"),
        (['{"prompt": "a", "expect": {"exact": "b"}}', '{"text": "c"}'], "records of both kinds"),
    ],
)
def test_what_cannot_be_expected_is_refused(lines: list[str], said: str) -> None:
    with pytest.raises(RegistryError, match=said):
        check_dataset(["\n".join(lines).encode()])


def test_an_adapter_is_asked_and_judged(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    record = json.loads((TINY / "data" / "queries_eval.jsonl").read_text().splitlines()[0])
    start = record["text"][:24]
    lines = [{"prompt": start, "expect": {"regex": "[^0]*.*"}}, {"prompt": start, "expect": {"exact": "never this"}}]
    path.write_text("\n".join(map(json.dumps, lines)))
    skip = dict.fromkeys(("numbers", "effect", "agreement"), "not of interest here.")
    chosen = EvaluationSet("behaviour", "sha256:x", "answers", path)
    subject = Subject(TINY / "base", TINY / "adapters" / "queries-v2", "v", "b", (chosen,), skip)  # type: ignore[arg-type]
    report = validate(subject)
    found = report.answers["sha256:x"]
    assert (found.met, found.asked, [missed["record"] for missed in found.missed]) == (1, 2, [2])
    assert found.missed[0]["answer"]
    assert validate(subject).digest == report.digest

    def allowed(least: float) -> bool | None:
        policy = Policy(blocking=("structure",), behaviour=Behaviour(least=least))
        return decide(policy, GateFacts(report=report, behaviour={"sha256:x": "answers"})).allowed

    assert (allowed(1.0), allowed(0.5)) == (False, True)
    missing = decide(Policy(blocking=("structure",)), GateFacts(report=report, behaviour={"sha256:y": "others"}))
    assert missing.allowed is None
