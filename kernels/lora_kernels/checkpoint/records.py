"""Records of written files, and of tensors in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from lora_contract.tensors import TensorEntry

Progress: TypeAlias = Callable[[int, int], None]
"""progress(done, total): called during the work, possibly from several threads."""


class FileRecord(msgspec.Struct, frozen=True):
    """A file of the result. sha256: 64 hex digits; None if no digest was requested."""

    path: str
    size: int
    sha256: str | None


class Factor(msgspec.Struct, frozen=True):
    """A tensor of an adapter file. start, end: its byte range in the file, header included."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def of(cls, entry: TensorEntry) -> Factor:
        return cls(entry.name, entry.dtype, entry.shape, entry.file_start, entry.file_end)
