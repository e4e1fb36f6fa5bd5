"""What a backup consists of.

<folder, or bucket and prefix>
├── blobs/…                     blobs under the keys of the store, shared by all backups
└── backups/<id>/
    ├── database                one consistent copy of all tables
    ├── blobs                   the blobs of this backup: one line each, "<64 hex>[.<life>] <size>", sorted
    └── backup.json             Document; written last, so without it the backup is unfinished
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs import keys
from lora_registry.blobs.files import Written

FOLDER: Final = "backups/"
DATABASE: Final = "database"
BLOBS: Final = "blobs"
DOCUMENT: Final = "backup.json"
MAX_DOCUMENT: Final = 1 << 20

Item = tuple[Digest, int]
"""A blob's address and its length in bytes."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a backup. size: in bytes."""

    size: int
    sha256: str

    @classmethod
    def of(cls, written: Written) -> Part:
        return cls(size=written.size, sha256=written.sha256)


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A finished backup.

    Args:
        at: time of the mark: the database as of then; all blobs that it names are newer copies of immutable bytes.
        event: number of the newest event in it; 0 if there is none.
        revision: of the schema.
        incomplete: blobs that versions need and that the store had lost or damaged, by name; at most 1000.
    """

    format: Literal["lora-registry-backup/1"] = "lora-registry-backup/1"
    id: str
    at: str
    event: int
    kind: Literal["sqlite", "postgresql"]
    revision: str
    software: str
    database: Part
    blobs: Part
    blob_count: int
    blob_bytes: int
    incomplete: list[str] = []


def new_id() -> str:
    """An id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(2)}"


def age_of(backup_id: str) -> float:
    """Seconds since an id was made; 0 for other names."""
    try:
        begun = datetime.strptime(backup_id.partition("-")[0], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
    except ValueError:
        return 0.0
    return (datetime.now(UTC) - begun).total_seconds()


def name_of(where: Digest) -> str:
    """`<64 hex>`, with `.<life>` for an address with one. Names sort as a store lists its blobs."""
    return keys.blob_key(where).rpartition("/")[2]


def to_lines(items: Iterable[Item]) -> Iterator[bytes]:
    for where, size in items:
        yield f"{name_of(where)} {size}\n".encode("ascii")


def from_lines(lines: Iterable[bytes]) -> Iterator[Item]:
    """Parse lines of `to_lines`. Raises RegistryError `corrupt`."""
    for line in lines:
        name, _, size = line.decode("ascii", "replace").strip().partition(" ")
        where = keys.parse_blob_key(f"{keys.BLOBS}{name[:2]}/{name}")
        if where is None or not size.isdigit():
            raise RegistryError("corrupt", f"The list of blobs has a line {line[:100]!r}; expected name and size.")
        yield where, int(size)
