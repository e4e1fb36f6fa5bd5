"""The layout of a blob store: all keys.

    <root folder, or bucket and prefix>
    ├── blobs/sha256/
    │   ├── 00/0012…                     a blob: named by the sha256 of its content, written once, never changed
    │   ├── 00/0012….5f3a9c01            the same content in a later life, or made by a job: see BlobAddress
    │   └── ff/ffe8…
    ├── uploads/<session>/
    │   ├── <64 hex>                     bytes of a presigned PUT; a blob only after `adopt` has hashed them
    │   ├── <64 hex>.part-00001           a part of a long upload, from part 1; joined by `adopt`
    │   ├── <64 hex>.adopted             empty: this session uploaded these bytes, so a repeated `adopt` may succeed
    │   └── stream                       (S3) a long stream whose digest is unknown until its end
    └── tmp/put-…                        (folder) a file being written; locked while its writer lives

`<session>` consists of hex digits and dashes (a UUID with or without its dashes). With a fan-out of two hex digits, a
store of a million blobs has about four thousand names per folder.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError

BLOBS: Final = "blobs/sha256/"
UPLOADS: Final = "uploads/"
TMP: Final = "tmp/"
MAX_PARTS: Final = 10_000
"""As many as an object of S3 can be joined of."""
ADOPTED: Final = ".adopted"
PART: Final = ".part-"

_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")
_SESSION: Final = re.compile(r"[0-9a-fA-F][0-9a-fA-F-]{7,63}\Z")
_LIFE: Final = re.compile(r"[0-9a-f]{8}\Z")


@dataclass(frozen=True, slots=True, order=True)
class BlobAddress(Digest):
    """A digest, and which of the objects with this content: a key is never used again once its object was deleted.

    So the delete of a collector that was frozen for hours cannot remove bytes that were stored again meanwhile.
    life: eight hex digits; empty: the plain key.
    """

    life: str = ""


def address(digest: Digest, life: str) -> Digest:
    """Return where the bytes of a digest are: a plain digest for the plain key."""
    return BlobAddress(digest.hex, life) if life else Digest(digest.hex)


def life_of(where: Digest) -> str:
    return where.life if isinstance(where, BlobAddress) else ""


def new_life() -> str:
    return secrets.token_hex(4)


def blob_key(digest: Digest) -> str:
    """`blobs/sha256/ab/abcdef…`, or `blobs/sha256/ab/abcdef….5f3a9c01` for a BlobAddress with a life."""
    life = f".{digest.life}" if isinstance(digest, BlobAddress) and digest.life else ""
    return f"{BLOBS}{digest.hex[:2]}/{digest.hex}{life}"


def upload_prefix(upload: str) -> str:
    """`uploads/<session>/`. Raises RegistryError `invalid-request` if the session is not hex or a UUID."""
    if not _SESSION.match(upload):
        raise RegistryError(
            "invalid-request", f"{upload[:80]!r} is not an upload session: 8 to 64 hex digits and dashes."
        )
    return f"{UPLOADS}{upload}/"


def upload_key(upload: str, digest: Digest) -> str:
    """`uploads/<session>/<hex>`: the upload of the blob announced with this digest. Raises as upload_prefix."""
    return upload_prefix(upload) + digest.hex


def adopted_key(upload: str, digest: Digest) -> str:
    """`uploads/<session>/<hex>.adopted`: the marker beside it. Raises as upload_prefix."""
    return upload_key(upload, digest) + ADOPTED


def part_key(upload: str, digest: Digest, number: int) -> str:
    """`uploads/<session>/<hex>.part-00001`: a part of the upload; keys sort by number. Raises as upload_prefix."""
    if not 1 <= number <= MAX_PARTS:
        raise RegistryError("invalid-request", f"A part has a number from 1 to {MAX_PARTS}, not {number}.")
    return f"{upload_key(upload, digest)}{PART}{number:05}"


def parse_part_key(key: str) -> int | None:
    """Return the number of a part; None for any other key."""
    number = key.rpartition(PART)[2]
    return int(number) if PART in key and len(number) == 5 and number.isascii() and number.isdigit() else None


def parse_blob_key(key: str) -> Digest | None:
    """Return the address of a blob's key; None for any other key, which a store should not contain but may."""
    shard, _, name = key.removeprefix(BLOBS).partition("/")
    name, dot, life = name.partition(".")
    if not key.startswith(BLOBS) or not _HEX.match(name) or name[:2] != shard or (dot and not _LIFE.match(life)):
        return None
    return address(Digest(name), life)
