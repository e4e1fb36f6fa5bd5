"""The tables of docs/merging-types.md, from the rooms of `lora_kernels.types` and the contract's table of types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from docs.generate.markdown import between, table
from lora_contract.adapter.types import TYPES
from lora_kernels.types.room import Page
from lora_kernels.types.table import ROOMS

PAGE: Final = Path(__file__).resolve().parents[1] / "merging-types.md"


def page() -> str:
    """The committed page with its tables written again."""
    text = PAGE.read_text("utf-8")
    for name, lines in (("merged", list(_merged())), ("refused", list(_refused()))):
        text = between(text, name, lines)
    return text


def _merged() -> Iterator[str]:
    pages: dict[Page, None] = dict.fromkeys(room.page for room in ROOMS.values() if room.page is not None)
    rows = ((page.title, page.weight, page.reach, page.on, page.source) for page in pages)
    yield from table(["type", "weight", "reach", "on", "source in peft 0.21.2"], rows)


def _refused() -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for name, kind in TYPES.items():
        if kind.unmerged is not None:
            reasons.setdefault(kind.unmerged, []).append(name)
    yield from table(["type", "why"], ((", ".join(names), why) for why, names in reasons.items()))
