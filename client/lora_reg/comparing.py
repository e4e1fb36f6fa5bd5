"""Compare two versions: config keys, and losses on the datasets that both were evaluated on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_contract import decoding
from lora_contract.validation import Validation
from lora_contract.wire.jobs import ReportView


def changed_config(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Keys of adapter_config.json whose values differ; None if one config lacks the key."""
    return [
        {"key": key, "before": before.get(key), "after": after.get(key)}
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def side_by_side(before: Sequence[ReportView], after: Sequence[ReportView]) -> list[dict[str, Any]]:
    """Losses in nats per token on the datasets that both were validated on, with the interval of the difference."""
    from lora_contract.statistics import paired_difference

    one, other = (_evaluations(reports) for reports in (before, after))
    rows = []
    for digest in sorted(one.keys() & other.keys(), key=lambda digest: one[digest].name):
        mine, theirs = one[digest], other[digest]
        numbers = [[value for value in found.nats if value is not None] for found in (mine, theirs)]
        usable = mine.tokens == theirs.tokens and all(len(some) == len(mine.tokens) for some in numbers)
        interval = paired_difference(numbers[1], numbers[0], mine.tokens) if usable and len(mine.tokens) > 1 else None
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


def _evaluations(reports: Sequence[ReportView]) -> dict[str, Any]:
    """Evaluations by dataset, each from the newest report that has it."""
    found: dict[str, Any] = {}
    for view in reports:
        if view.kind == "validate":
            for evaluation in decoding.convert(view.body, Validation).evaluations:
                if None not in evaluation.nats:
                    found.setdefault(evaluation.dataset, evaluation)
    return found
