"""Evaluation sets: what is a record, and what is refused by its line."""

from __future__ import annotations

import pytest

from lora_contract import dataset
from lora_contract.dataset import Record, parse_records
from lora_contract.errors import RegistryError


def test_records_of_both_kinds_in_order() -> None:
    lines = [b'{"text": "a"}\n', b"\n", b'{"prompt": "b", "completion": "c"}\n', b'{"prompt": "", "completion": "d"}']
    assert list(parse_records(lines)) == [Record("a"), Record("c", "b"), Record("d", "")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "a"', "Line 2"),
        (b'["a"]', "Line 2 .* not an object"),
        (b'{"text": "a", "label": "b"}', "Line 2 .* label, text"),
        (b'{"prompt": "a"}', "Line 2 .* expected text, or prompt and completion"),
        (b'{"text": 5}', "Line 2 .* not a string"),
        (b'{"text": ""}', "Line 2 .* no text to predict"),
        (b'{"text": "a", "text": "b"}', "Line 2"),
        (b'{"text": "\xff"}', "Line 2"),
        (b'{"text": "' + b"a" * dataset.MAX_LINE + b'"}', "Line 2 .* bytes"),
    ],
)
def test_a_line_that_is_no_record_is_named(line: bytes, said: str) -> None:
    with pytest.raises(RegistryError, match=said):
        list(parse_records([b'{"text": "fine"}', line]))


def test_too_many_and_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "MAX_RECORDS", 2)
    with pytest.raises(RegistryError, match="exceeds the maximum of 2 records"):
        list(parse_records([b'{"text": "a"}'] * 3))
    with pytest.raises(RegistryError, match="no records"):
        list(parse_records([b"\n"]))
