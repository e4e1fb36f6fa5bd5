"""The tokenizer layer on the example's own tokenizer, changed in the ways that people change theirs by accident."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_kernels.validating.tokenizer import tokenizer
from tests.support.command import TINY

BASE = TINY / "base"
ROWS = json.loads((BASE / "config.json").read_text())["vocab_size"]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An adapter's folder with the base's tokenizer, as trainers save it."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (BASE / name).exists():
            shutil.copyfile(BASE / name, tmp_path / name)
    return tmp_path


def codes(folder: Path, *, brings_embedding: bool = False) -> list[str]:
    found = tokenizer(BASE, folder, rows=ROWS, brings_embedding=brings_embedding)
    return [f"{finding.severity}:{finding.code}" for finding in found.findings]


def changed(folder: Path, change: Callable[[dict[str, Any]], None], name: str = "tokenizer.json") -> Path:
    document = json.loads((folder / name).read_text("utf-8"))
    change(document)
    (folder / name).write_text(json.dumps(document), "utf-8")
    return folder


def test_none_and_the_same_are_as_they_should_be(own: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert codes(empty) == []
    assert codes(own) == []

    def for_batches(document: dict[str, Any]) -> None:
        document["truncation"] = {"max_length": 128, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        document["padding"] = {"strategy": "BatchLongest", "direction": "Left", "pad_id": 0, "pad_token": "x"}

    assert codes(changed(own, for_batches)) == []


def test_every_id_off_by_one(own: Path) -> None:
    def shifted(document: dict[str, Any]) -> None:
        document["model"]["vocab"] = {token: number + 1 for token, number in document["model"]["vocab"].items()}

    assert "error:token-ids-differ" in codes(changed(own, shifted))


def test_one_token_inserted_in_the_middle(own: Path) -> None:
    def inserted(document: dict[str, Any]) -> None:
        vocab = {token: number + (number > 40) for token, number in document["model"]["vocab"].items()}
        document["model"]["vocab"] = {**vocab, "<inserted>": 41}

    found = codes(changed(own, inserted))
    assert "error:token-ids-differ" in found
    assert "note:tokens-added" in found


def test_a_token_beyond_the_embedding_needs_rows(own: Path) -> None:
    changed(own, lambda document: document["added_tokens"].append({"id": ROWS, "content": "<new>"}))
    assert codes(own) == ["error:tokens-without-embedding"]
    assert codes(own, brings_embedding=True) == ["note:tokens-added"]


def test_a_token_that_is_gone_and_text_that_is_split_elsewhere(own: Path) -> None:
    vocab = json.loads((own / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    last = max(vocab, key=vocab.__getitem__)
    assert codes(changed(own, lambda document: document["model"]["vocab"].pop(last))) == ["error:tokens-missing"]
    shutil.copyfile(BASE / "tokenizer.json", own / "tokenizer.json")

    def lower(document: dict[str, Any]) -> None:
        document["normalizer"] = {"type": "Lowercase"}

    assert codes(changed(own, lower)) == ["error:tokenizer-differs"]


def test_special_tokens_and_the_chat_template(own: Path) -> None:
    config = "tokenizer_config.json"
    changed(own, lambda document: document.update(eos_token="<|other|>", pad_token="<|filler|>"), config)
    assert codes(own) == ["error:special-token-differs", "warning:special-token-differs"]
    shutil.copyfile(BASE / config, own / config)
    template = own / "chat_template.jinja"
    template.write_text(template.read_text() + "{# a remark #}")
    assert codes(own) == []
    template.write_text("{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}")
    assert codes(own) == ["warning:chat-template-differs"]
    template.write_text("{% for i in range(10 ** 9) %}{{ i }}{% endfor %}")
    assert codes(own) == ["warning:chat-template-not-compared"]
