"""Bytes of an upload that arrive one batch after another. No thread is held between them."""

from __future__ import annotations

from collections.abc import Callable

from lora_registry.blobs import protocols


class Reception:
    """A blob or a part of one that is being received. Its methods do I/O: call them in threads, one at a time.

    begin: called with the first bytes; returns where they go. accept: called when all of them are stored. Close it in
    the end.
    """

    def __init__(self, begin: Callable[[], protocols.Reception], accept: Callable[[], None]) -> None:
        self._begin = begin
        self._accept = accept
        self._bytes: protocols.Reception | None = None

    @property
    def begun(self) -> bool:
        """True while something is to be closed."""
        return self._bytes is not None

    def write(self, data: bytes) -> None:
        self._begun().write(data)

    def finish(self, data: bytes) -> None:
        """Store the last bytes, accept them all, and close."""
        begun = self._begun()
        if data:
            begun.write(data)
        begun.finish()
        self._accept()
        self.close()

    def close(self) -> None:
        """Release what is held; bytes that were not finished are dropped."""
        if self._bytes is not None:
            self._bytes.discard()
            self._bytes = None

    def _begun(self) -> protocols.Reception:
        if self._bytes is None:
            self._bytes = self._begin()
        return self._bytes
