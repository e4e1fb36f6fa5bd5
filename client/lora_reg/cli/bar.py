"""The progress bar: one per command, on stderr, and only on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from lora_reg.formatting.text import clean
from lora_reg.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from lora_contract.wire.jobs import JobProgress


def on_terminal(*, quiet: bool) -> Progress:
    """A bar if stderr is a terminal, else silence. rich is imported only for a terminal."""
    return SILENT if quiet or not sys.stderr.isatty() else Bar()


class Bar:
    """Draws one line by rich: the phase's name, its bar, its amount, and the seconds since the command began."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def begin(self, what: str, total: int | None, *, unit: str = "B") -> None:
        if total == 0:
            return
        if self._bar is None:
            self._bar = _make(self._began)
            self._bar.start()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(clean(what), total=total, unit=clean(unit))

    def advance(self, amount: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, amount)

    def say(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=clean(text))

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def _make(began: float) -> RichProgress:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class Amount(ProgressColumn):
        """`3 of 8 modules`, or bytes; empty if the total is not known."""

        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text("")
            if task.fields["unit"] == "B":
                speed = f", {decimal(int(task.speed))}/s" if task.speed else ""
                return Text(f"{decimal(int(task.completed))} of {decimal(int(task.total))}{speed}")
            return Text(f"{task.completed:g} of {task.total:g} {task.fields['unit']}")

    class Elapsed(ProgressColumn):
        def render(self, task: Task) -> Text:  # noqa: ARG002
            return Text(f"{time.monotonic() - began:.0f} s")

    name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    return RichProgress(name, BarColumn(20), Amount(), Elapsed(), console=Console(stderr=True), transient=True)


class JobPhases:
    """Shows the progress records of a job as phases of a bar."""

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
