"""Every architecture of the installed transformers: its merges are those of the adapted model, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from tests.architectures.generate import TABLE, row
from tests.architectures.sweep import sweep
from tests.architectures.table import DOCUMENT, every, line
from tests.architectures.tiny import every_class

pytestmark = pytest.mark.filterwarnings("ignore")

ARCHITECTURES = every()
# How a base is quantized depends little on its architecture. All of them: `python -m tests.architectures.table`.
QUANTIZED = set(sorted(ARCHITECTURES)[::4])
# Enough of the table to see that it is generated from these classes; all of it takes minutes.
SAMPLE = sorted(every_class())[::16]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_merges_equal_the_adapted_model_or_are_refused(tmp_path: Path, name: str) -> None:
    outcomes = sweep(name, ARCHITECTURES[name], tmp_path, quantized=name in QUANTIZED)
    assert not [f"{case}: {outcome}" for case, outcome in outcomes.items() if outcome.startswith("wrong")]
    assert line(name, outcomes) in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_the_document_lists_these_architectures_and_no_other() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    listed = {
        entry.split(" | ")[0].removeprefix("| ")
        for entry in text[text.index("## ") :].splitlines()
        if entry.count(" | ") == 4
    }
    assert listed - {"architecture"} == set(ARCHITECTURES)
    assert f"transformers {transformers.__version__}" in text


@pytest.mark.parametrize("name", SAMPLE)
def test_the_table_is_generated_from_the_classes(name: str) -> None:
    known = json.loads(TABLE.read_text(encoding="utf-8"))
    assert known["transformers"] == transformers.__version__
    try:
        wanted = row(name, every_class()[name])
    except Exception:  # a class that cannot be made here is in no list
        assert name not in known["architectures"] and name not in known["untied"]
        return
    assert known["architectures"].get(name) == json.loads(json.dumps(wanted))
    assert (name in known["untied"]) == (wanted is None)
