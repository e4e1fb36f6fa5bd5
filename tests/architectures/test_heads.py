"""Heads of tasks: the table is that of the installed transformers, and merges are those of the adapted model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from lora_contract.heads import head_table
from tests.architectures.generate_heads import HEADS, head_row, tasks
from tests.architectures.heads import DOCUMENT, cases, forms, head_outcome, line

pytestmark = pytest.mark.filterwarnings("ignore")

SHARE = sorted(forms().items())
SAMPLE = sorted({name: model_type for (_, name), model_type in cases().items()}.items())[::12]


@pytest.mark.parametrize(
    ("case", "model_type"), SHARE, ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_a_head_is_merged_as_the_adapted_model_has_it_or_refused(
    tmp_path: Path, case: tuple[str, str], model_type: str
) -> None:
    task, name = case
    outcome = head_outcome(task, name, model_type, tmp_path)
    assert not outcome.startswith("wrong")
    assert line(task, name, model_type, outcome) in DOCUMENT.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("name", "model_type"), SAMPLE)
def test_the_table_of_heads_is_generated_from_the_classes(name: str, model_type: str) -> None:
    known = json.loads(HEADS.read_text(encoding="utf-8"))
    assert known["transformers"] == transformers.__version__
    assert known["classes"][name] == head_row(name, model_type)


def test_the_table_of_heads_has_the_tasks_of_transformers() -> None:
    table, wanted = head_table(), tasks()
    for task, types in wanted.items():
        for model_type, names in types.items():
            known = [name for name in names if name in table.classes]
            assert list(table.tasks[task].get(model_type, ())) == known
