"""Progress as a callback, so that the library prints nothing by itself."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of long work. Calls may come from several threads."""

    def begin(self, what: str, total: int | None, *, unit: str = "B") -> None:
        """Start a phase. total: the amount of work in `unit` (B: bytes); None if it is not known."""

    def advance(self, amount: int) -> None:
        """Add to the work done; negative if a part has to be repeated."""

    def say(self, text: str) -> None:
        """Name the current step in a few words."""

    def end(self) -> None:
        """End the phase."""


class Silent:
    """Reports nothing."""

    def begin(self, what: str, total: int | None, *, unit: str = "B") -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def end(self) -> None:
        pass


SILENT = Silent()
