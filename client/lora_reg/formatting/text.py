"""Plain text for terminals: columns, sizes, times. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def clean(text: str) -> str:
    """The text with everything that does not print, and every line break, written as an escape."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; empty where there are no rows."""
    if not rows:
        return []
    cells = [list(headers), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def fields(pairs: Iterable[tuple[str, str | None]]) -> list[str]:
    """Indented `name  value` lines; those without a value are left out."""
    kept = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in kept), default=0)
    return [f"  {name.ljust(width)}  {clean(value)}" for name, value in kept]


def size(count: int) -> str:
    """Bytes for people, in powers of 1000."""
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if abs(value) < 999.95 and abs(count) >= 1000:
            return f"{value:.1f} {unit}"
    return f"{count} B" if abs(count) < 1000 else f"{value / 1000:.1f} TB"


def when(text: str) -> str:
    """An RFC 3339 time in UTC, without its fraction."""
    return text[:19].replace("T", " ") + ("Z" if text.endswith(("Z", "+00:00")) else "")


def short(digest: str) -> str:
    """`sha256:` and twelve digits."""
    return digest[:19]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
