"""Two versions side by side, as lines for people: config, losses on the sets both were evaluated on, modules. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lora_contract.validation import Validation
from lora_contract.wire.jobs import ReportView
from lora_reg.cli.text import plural, table


def changed_config(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Keys of adapter_config.json whose values differ; None where one lacks the key."""
    return [
        {"key": key, "before": before.get(key), "after": after.get(key)}
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def side_by_side(before: Sequence[ReportView], after: Sequence[ReportView]) -> list[dict[str, Any]]:
    """Losses in nats per token on the evaluation sets that both were validated on, with their interval."""
    from lora_contract.statistics import paired

    one, other = (_evaluations(reports) for reports in (before, after))
    rows = []
    for digest in sorted(one.keys() & other.keys(), key=lambda digest: one[digest].name):
        mine, theirs = one[digest], other[digest]
        numbers = [[value for value in found.nats if value is not None] for found in (mine, theirs)]
        usable = mine.tokens == theirs.tokens and all(len(some) == len(mine.tokens) for some in numbers)
        interval = paired(numbers[1], numbers[0], mine.tokens) if usable and len(mine.tokens) > 1 else None
        rows.append(
            {
                "set": mine.name,
                "base": mine.base_loss,
                "before": mine.loss,
                "after": theirs.loss,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
            }
        )
    return rows


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
    """The modules that changed most, and what became of the others."""
    rows = [row for row in found["modules"] if row["state"] != "same"]
    same = len(found["modules"]) - len(rows)
    lines = table(
        ("MODULE", "BEFORE", "AFTER", "DIFFERENCE", "COSINE", "INPUTS", "OUTPUTS"),
        [
            (
                row["module"],
                *(f"{row[name]:.4g}" for name in ("before", "after", "difference")),
                *("-" if row[name] is None else f"{row[name]:.3f}" for name in ("cosine", "inputs", "outputs")),
            )
            for row in rows[:shown]
        ],
    )
    if len(rows) > shown:
        lines.append(f"and {plural(len(rows) - shown, 'module')} that changed less")
    cosine = "-" if found["cosine"] is None else f"{found['cosine']:.3f}"
    lines.append(
        f"in all: {found['before']:.4g} to {found['after']:.4g}, difference {found['difference']:.4g}, cosine {cosine}"
        + (f"; {plural(same, 'module')} the same" if same else "")
    )
    return lines


def _evaluations(reports: Sequence[ReportView]) -> dict[str, Any]:
    """By dataset, of the newest report that has it."""
    found: dict[str, Any] = {}
    for view in reports:
        if view.kind == "validate":
            for evaluation in msgspec.convert(view.body, Validation).evaluations:
                if None not in evaluation.nats:
                    found.setdefault(evaluation.dataset, evaluation)
    return found
