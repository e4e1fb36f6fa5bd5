"""The progress bar: on stderr, and only where that is a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lora_reg.formatting.text import clean
from lora_reg.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from lora_contract.wire.jobs import JobProgress


def on_terminal(*, quiet: bool) -> Progress:
    """A bar where a person watches, else silence. rich is imported for a person only."""
    return SILENT if quiet or not sys.stderr.isatty() else Bar()


class Bar:
    """Progress by rich, one phase at a time."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None

    def begin(self, what: str, total: int | None, *, unit: str = "B") -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        self.end()
        if total == 0:
            return
        columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
        if total is not None and unit == "B":
            columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        elif total is not None:
            columns.append(TextColumn("{task.completed:g} of {task.total:g} " + clean(unit)))
        bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = bar.add_task(clean(what), total=total)
        self._bar = bar
        bar.start()

    def advance(self, amount: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, amount)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=clean(text))

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class JobTeller:
    """A job's progress items as phases of a bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._step: tuple[str, int | None] | None = None
        self._done = 0

    def __call__(self, item: JobProgress) -> None:
        if (item.step, item.total) != self._step:
            self._step, self._done = (item.step, item.total), 0
            unit = "B" if item.unit == "bytes" else item.unit or "steps"
            self._progress.begin(item.step, item.total, unit=unit)
        self._progress.advance(item.done - self._done)
        self._done = item.done
        if item.message:
            self._progress.say(f"{item.step}: {item.message}")
