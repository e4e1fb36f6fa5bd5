"""What a source lists: adapters with their files, and how each file is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from lora_contract import canonical
from lora_contract.errors import RegistryError

Opened: TypeAlias = AbstractContextManager[tuple[int, Iterator[bytes]]]
"""The offset from which a source sends a file, and its bytes from there."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of an adapter at its source.

    Args:
        path: relative to the adapter's folder.
        size: in bytes; None if the source does not say.
        sha256: hex digits; None if the source does not say.
        mark: what changes with the content (an ETag, a git object id).
        location: what the source opens it by.
    """

    path: str
    size: int | None
    sha256: str | None = None
    mark: str = ""
    location: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """An adapter at its source, perhaps: its files decide.

    Args:
        source: where it lies, without a revision; kept in the version's metadata.
        revision: names this content: a commit, a number, or a digest of the listing.
        name: of the repository to make, as the source spells it.
        files: all that lie there.
        base: the base that the source names beside the files.
        tags: to set, those of the source.
        meta: metadata that the source has of it.
        folder: on this machine; None if the files must be fetched.
    """

    source: str
    revision: str
    name: str
    files: tuple[SourceFile, ...]
    base: str | None = None
    tags: tuple[str, ...] = ()
    meta: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def file(self, path: str) -> SourceFile | None:
        return next((file for file in self.files if file.path == path), None)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A part of a source that could not be listed."""

    source: str
    error: RegistryError


class Source(Protocol):
    """A place to import from."""

    def items(self) -> Iterator[Item | Unreadable]:
        """List the adapters, in the order in which they become versions. Raises RegistryError if none can be listed."""

    def open(self, item: Item, file: SourceFile, start: int) -> Opened:
        """Open a file from a byte on. A source that cannot may start at 0."""

    def close(self) -> None:
        """Release connections."""


Opener: TypeAlias = Callable[[int], Opened]


def listing_digest(files: tuple[SourceFile, ...]) -> str:
    """A revision for sources that have none: it changes with any file's path, size or mark."""
    table = sorted([file.path, file.size, file.sha256 or file.mark] for file in files)
    return str(canonical.digest(table))
