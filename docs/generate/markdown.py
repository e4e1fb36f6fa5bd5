"""Pieces of Markdown that the pages share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

NOTE: Final = "<!-- Generated from the code by `make docs`; changes here are overwritten. -->"


def document(lines: Iterable[str]) -> str:
    """Lines as a page: one blank line at most between two, one newline at the end."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table with a blank line around it; nothing if there are no rows."""
    filled = list(rows)
    if filled:
        yield ""
        yield f"| {' | '.join(head)} |"
        yield "|" + "---|" * len(head)
        for row in filled:
            yield f"| {' | '.join(cell(text) for text in row)} |"
        yield ""


def between(text: str, name: str, lines: Sequence[str]) -> str:
    """Replace what stands in a page between the two comments that name a table."""
    begin, end = f"<!-- {name}: written by make docs -->\n", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no place for the table {name!r}")
    return f"{before}{begin}\n" + "\n".join(lines).strip() + f"\n\n{end}{after}"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def block(text: str, language: str = "") -> Iterator[str]:
    yield ""
    yield f"```{language}"
    yield text
    yield "```"
    yield ""


def anchor(heading: str) -> str:
    """The fragment that GitHub and GitLab give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
