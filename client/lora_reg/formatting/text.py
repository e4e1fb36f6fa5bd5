"""Text for terminals: lines with tones, columns, sizes, times. Pure: the output decides on colour and width."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

Tone = Literal["good", "warning", "bad", "faint"]

NARROW: Final = 4
"""Indent of a continuation line if the hanging indent would leave too little room."""
_ROOM: Final = 24
_LONG_ID: Final = re.compile(r"(.*-)?([0-9a-f]{13,})\Z")
_SHORT: Final = 12


class Word(str):
    """A piece of text with a tone."""

    __slots__ = ("tone",)

    tone: Tone | None

    def __new__(cls, text: str, tone: Tone | None = None) -> Word:
        word = super().__new__(cls, text)
        word.tone = tone
        return word


class Line(str):
    """A line made of words, and the indent of its continuation if it is longer than the terminal is wide."""

    __slots__ = ("hang", "words")

    words: tuple[Word, ...]
    hang: int

    def __new__(cls, *words: str, hang: int = 0) -> Line:
        line = super().__new__(cls, "".join(words))
        line.words = tuple(word if isinstance(word, Word) else Word(word) for word in words)
        line.hang = hang
        return line


def words_of(text: str) -> tuple[Word, ...]:
    if isinstance(text, Line):
        return text.words
    return (text if isinstance(text, Word) else Word(text),)


def indented(lines: Iterable[str], by: int = 2) -> list[str]:
    """The lines further to the right, with their tones."""
    return [Line(" " * by, *words_of(line), hang=by + getattr(line, "hang", 0)) for line in lines]


def clean(text: str) -> str:
    """The text with unprintable characters and line breaks escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; empty if there are no rows."""
    if not rows:
        return []
    cells = [[Word(header, "faint") for header in headers]]
    cells += [[Word(clean(cell), getattr(cell, "tone", None)) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    hang = sum(widths[:-1]) + 2 * (len(widths) - 1)
    return [_row(row, widths, hang) for row in cells]


def _row(cells: Sequence[Word], widths: Sequence[int], hang: int) -> Line:
    while len(cells) > 1 and not cells[-1].strip():
        cells = cells[:-1]
    words: list[str] = []
    for cell, width in zip(cells, widths, strict=False):
        words += [cell, " " * (width - len(cell) + 2)]
    last = words[-2].rstrip()
    words[-2:] = [Word(last, getattr(words[-2], "tone", None))]
    return Line(*words, hang=hang)


def fields(pairs: Iterable[tuple[str, str | None]]) -> list[str]:
    """Indented `name  value` lines; those without a value are left out."""
    kept = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in kept), default=0)
    return [
        Line(
            "  ",
            Word(name.ljust(width), "faint"),
            "  ",
            *(Word(clean(w), w.tone) for w in words_of(value)),
            hang=width + 4,
        )
        for name, value in kept
    ]


def wrap(line: str, width: int) -> Iterator[tuple[Word, ...]]:
    """Break a line at spaces so that each part fits; a word that is longer than the terminal stays whole."""
    text, hang = str(line), getattr(line, "hang", 0)
    start, indent = 0, 0
    while True:
        room = width - indent
        if len(text) - start <= room:
            yield _part(line, start, len(text), indent)
            return
        first = start + len(text[start:]) - len(text[start:].lstrip())
        cut = text.rfind(" ", first + 1, start + room + 1)
        if cut < 0:
            cut = text.find(" ", start + room)
        if cut < 0:
            yield _part(line, start, len(text), indent)
            return
        yield _part(line, start, len(text[:cut].rstrip()), indent)
        start = cut + len(text[cut:]) - len(text[cut:].lstrip())
        if start >= len(text):
            return
        word = text[start:].split(" ", 1)[0]
        indent = hang if width - hang >= max(_ROOM, len(word)) else min(hang, NARROW)


def _part(line: str, start: int, end: int, indent: int) -> tuple[Word, ...]:
    words = [Word(" " * indent)] if indent else []
    at = 0
    for word in words_of(line):
        piece = word[max(0, start - at) : max(0, end - at)]
        if piece:
            words.append(Word(piece, word.tone))
        at += len(word)
    return tuple(words)


def size(count: int) -> str:
    """Bytes for people, in powers of 1000."""
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if abs(value) < 999.95 and abs(count) >= 1000:
            return f"{value:.1f} {unit}"
    return f"{count} B" if abs(count) < 1000 else f"{value / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """`24 hours`, `30 minutes`."""
    for length, unit in ((3600, "hour"), (60, "minute")):
        if seconds >= length:
            return plural(round(seconds / length), unit)
    return plural(round(seconds), "second")


def when(text: str) -> str:
    """An RFC 3339 time in UTC, without its fraction."""
    return text[:19].replace("T", " ") + ("Z" if text.endswith(("Z", "+00:00")) else "")


def age(text: str, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was, in its largest unit: `5s`, `3m`, `2h`, `4d`."""
    try:
        seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(text)).total_seconds()
    except (ValueError, TypeError):
        return when(text)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def short(digest: str) -> str:
    """`sha256:` and twelve digits."""
    return digest[:19]


def short_id(job_id: str) -> str:
    """A prefix of a job's id that identifies it in practice: up to twelve digits of its digest."""
    match = _LONG_ID.match(job_id)
    return f"{match[1] or ''}{match[2][:_SHORT]}" if match else job_id


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
