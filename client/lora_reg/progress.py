"""Progress as a callback, so that the library says nothing on a terminal by itself."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work tells. Calls may come from several threads."""

    def begin(self, what: str, total: int | None, *, unit: str = "B") -> None:
        """A phase starts. total: how much there is of `unit` (B: bytes); None where it is not known."""

    def advance(self, amount: int) -> None:
        """So much more is done; negative where a part has to be done again."""

    def say(self, text: str) -> None:
        """A step was reached, in a few words."""

    def end(self) -> None:
        """The phase is over."""


class Silent:
    """Tells nobody."""

    def begin(self, what: str, total: int | None, *, unit: str = "B") -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def end(self) -> None:
        pass


SILENT = Silent()
