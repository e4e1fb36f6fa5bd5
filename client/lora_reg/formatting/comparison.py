"""Comparisons of two versions, as lines: losses and changed modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_reg.formatting.text import plural, table


def losses(rows: Sequence[dict[str, Any]]) -> list[str]:
    return table(
        ("LOSS ON", "BASE", "BEFORE", "AFTER", "CHANGE"),
        [
            (
                row["set"],
                f"{row['base']:.4f}",
                f"{row['before']:.4f}",
                f"{row['after']:.4f}",
                f"{row['after'] - row['before']:+.4f}"
                + (f" ({row['low']:+.4f} to {row['high']:+.4f})" if row["low"] is not None else ""),
            )
            for row in rows
        ],
    )


def modules(found: dict[str, Any], shown: int) -> list[str]:
    """The modules that changed most, and the number of the others."""
    rows = [row for row in found["modules"] if row["state"] != "same"]
    same = len(found["modules"]) - len(rows)
    lines = table(
        ("CHANGE", "BEFORE", "AFTER", "COSINE", "INPUTS", "OUTPUTS", "MODULE"),
        [
            (
                *(f"{row[name]:.4g}" for name in ("difference", "before", "after")),
                *("-" if row[name] is None else f"{row[name]:.3f}" for name in ("cosine", "inputs", "outputs")),
                row["module"],
            )
            for row in rows[:shown]
        ],
    )
    if len(rows) > shown:
        lines.append(f"and {plural(len(rows) - shown, 'module')} that changed less")
    cosine = "-" if found["cosine"] is None else f"{found['cosine']:.3f}"
    lines.append(
        f"total: {found['before']:.4g} to {found['after']:.4g}, difference {found['difference']:.4g}, cosine {cosine}"
        + (f"; {plural(same, 'module')} unchanged" if same else "")
    )
    return lines
