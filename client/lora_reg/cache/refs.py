"""The last resolved version of each reference: for conditional requests and for `--offline`."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from lora_contract import decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.reference import Reference
from lora_reg.cache.store import Cache
from lora_reg.disk import replace_file

SCHEMA: Final = "lora-reg/ref/1"


class ResolvedReference(msgspec.Struct, frozen=True):
    """What the server answered. reference: with its namespace. yanked: the reason. at: RFC 3339, UTC.

    name: of the repository as the server shows it."""

    server: str
    reference: str
    digest: str
    number: int
    etag: str
    at: str
    schema: str = SCHEMA
    yanked: str | None = None
    name: str | None = None


def read(cache: Cache, server: str, ref: Reference) -> ResolvedReference | None:
    """The last answer; None if the reference was never resolved, or the file is damaged or of another reference (two
    tags that differ only in case, on a case-insensitive file system)."""
    try:
        found = decoding.decode(_path(cache, server, ref).read_bytes(), ResolvedReference)
        Digest.parse(found.digest)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError, RegistryError):
        return None
    same = (found.schema, found.server, found.reference) == (SCHEMA, server, str(ref))
    return found if same else None


def write(
    cache: Cache,
    server: str,
    ref: Reference,
    *,
    digest: Digest,
    number: int,
    etag: str,
    yanked: str | None = None,
    name: str | None = None,
) -> None:
    """Store what the reference means now; the last writer wins."""
    entry = ResolvedReference(
        server=server,
        reference=str(ref),
        digest=str(digest),
        number=number,
        etag=etag,
        yanked=yanked,
        name=name,
        at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    target = _path(cache, server, ref)
    target.parent.mkdir(parents=True, exist_ok=True)
    with cache.staging() as folder:
        replace_file(target, msgspec.json.encode(entry), staged=folder / "ref")


def _path(cache: Cache, server: str, ref: Reference) -> Path:
    host = hashlib.sha256(server.encode()).hexdigest()[:16]
    return cache.root / "refs" / host / str(ref.namespace) / ref.name / f"{quote(ref.selector(), safe='')}.json"
