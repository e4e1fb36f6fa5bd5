"""Jobs as lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lora_contract.wire.jobs import JobView
from lora_reg.formatting.text import Line, Tone, Word, age, fields, short_id, table, when
from lora_reg.formatting.views import cut, label, name_of

_TITLE: Final = 40
_TONES: Final[dict[str, Tone]] = {"done": "good", "failed": "bad", "cancelled": "warning"}


def state(view: JobView) -> Word:
    return Word(view.state, _TONES.get(view.state))


def job(view: JobView) -> list[str]:
    """All of a job, its full id included."""
    return [
        Line(state(view), f"  {view.kind}  {label(view.result) if view.result else view.title}".rstrip(), hang=4),
        *fields(
            [
                ("error", Word(view.error, "bad") if view.error else None),
                ("hint", view.error_hint),
                ("title", view.title),
                ("id", view.id),
                (
                    "waiting for",
                    Word(f"{view.waiting_for}: `lora-registry worker --queues {view.queue}` starts one", "warning")
                    if view.waiting_for
                    else None,
                ),
                ("queue", view.queue),
                ("worker", view.worker),
                ("attempts", str(view.attempts)),
                ("created", when(view.created_at)),
                ("updated", when(view.updated_at)),
            ]
        ),
    ]


def _waiting_for(view: JobView) -> Word | None:
    if view.waiting_for is None:
        return None
    return Word(f"{view.waiting_for}; start one with `lora-registry worker --queues {view.queue}`", "warning")


def jobs(views: Iterable[JobView]) -> list[str]:
    """One row for each job. A job without a result is described by its title."""
    return table(
        ("STATE", "RESULT", "ID", "AGE"),
        [
            (
                state(view),
                name_of(view.result) if view.result else cut(view.title, _TITLE),
                short_id(view.id),
                age(view.created_at),
            )
            for view in views
        ],
    )


def ended(view: JobView) -> Line:
    """A job that has ended, in one line."""
    return Line(state(view), f"  {label(view.result) if view.result else view.title or view.id}", hang=4)
