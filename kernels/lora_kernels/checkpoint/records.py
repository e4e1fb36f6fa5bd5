"""What is recorded of a file that was written."""

from __future__ import annotations

import msgspec


class FileRecord(msgspec.Struct, frozen=True):
    """A file of the result. sha256: 64 hex digits; None where it was not asked for."""

    path: str
    size: int
    sha256: str | None
