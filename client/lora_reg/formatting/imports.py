"""The table of an import. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lora_reg.formatting.text import Tone, Word, plural, size, table

if TYPE_CHECKING:
    from lora_reg.importing.run import Row

_TONES: Final[dict[str, Tone]] = {"created": "good", "failed": "bad", "not an adapter": "faint"}
_CAME: Final = ("created", "exists", "already imported", "would come")


def rows(found: Sequence[Row]) -> list[str]:
    """One line for each adapter: what became of it, and why it did not come."""
    lines = table(
        ("SOURCE", "OUTCOME", "VERSION", "FORMAT", "TAGS OR REASON"),
        [
            (
                row.source,
                Word(row.outcome, _TONES.get(row.outcome)),
                row.target or "-",
                row.format or "-",
                row.reason or ", ".join(row.tags) or "-",
            )
            for row in found
        ],
    )
    return [*lines, *([""] if lines else []), summary(found)]


def summary(found: Sequence[Row]) -> str:
    """How many came, how many did not, and what travelled."""
    counts = Counter(row.outcome for row in found)
    came = sum(counts[outcome] for outcome in _CAME)
    adapters = len(found) - counts["not an adapter"]
    text = f"{came} of {plural(adapters, 'adapter')} came" if not counts["would come"] else f"{came} would come"
    parts = [f"{count} {outcome}" for outcome, count in counts.items()]
    received, sent = sum(row.received for row in found), sum(row.sent for row in found)
    return f"{text} ({', '.join(parts) or 'nothing was found'}); {size(received)} fetched, {size(sent)} uploaded"
