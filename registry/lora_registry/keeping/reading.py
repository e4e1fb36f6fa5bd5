"""Read a file of a version so that no reader takes wrong bytes for right ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs import damage as blob_damage
from lora_registry.blobs.damage import known
from lora_registry.blobs.hashing import checked
from lora_registry.context import Context
from lora_registry.db.tables import Blob
from lora_registry.keeping import damage, store
from lora_registry.runtime.clock import now

SMALL: Final = 1024 * 1024
"""Files up to this size, in bytes, are verified before the first byte is sent."""

CHUNK: Final = 256 * 1024
_FRESH: Final = 24 * 3600 * 1_000_000
"""A verification is written to the row if the last one is older, in microseconds: not with every download."""


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a file. where: their address. state, verified_at: of the blob's row. name: of the file."""

    where: Digest
    size: int
    state: str
    verified_at: int
    name: str

    @classmethod
    def of(cls, row: Blob, name: str) -> Content:
        return cls(store.place(row), row.size, row.state, row.verified_at, name)


def contents(session: Session, version_ids: Sequence[int]) -> dict[int, dict[str, Content]]:
    """Return the stored files of versions, by version id and path."""
    result: dict[int, dict[str, Content]] = {version_id: {} for version_id in version_ids}
    for file, blob in store.stored_files(session, version_ids):
        result[file.version_id][file.path] = Content.of(blob, file.path)
    return result


def is_verified(content: Content, *, within: float) -> bool:
    """Return whether all bytes were compared with their digest in the last `within` seconds."""
    return content.verified_at > now() - within * 1_000_000


def require_present(ctx: Context, content: Content) -> None:
    """Check the row's state and the object's length. Raises RegistryError `corrupt` if one of them is wrong."""
    if content.state != "ok":
        raise known(content.where, content.name, content.state)
    size = ctx.blobs.size(content.where)
    if size != content.size:
        wrong = RegistryError("not-found" if size is None else "size-mismatch", f"{content.where} has {size} bytes.")
        raise damage.found(ctx, content.where, content.name, wrong)


def verify(ctx: Context, content: Content) -> None:
    """Read all bytes and compare them with their digest; mark the blob by what was found.

    Raises RegistryError `corrupt` if it is damaged or missing.
    """
    try:
        blob_damage.verify(ctx.blobs, content.where, content.size, content.name)
    except RegistryError as error:
        damage.mark_reported(ctx, error)
        raise
    if content.state != "ok":
        damage.mark(ctx, content.where, "ok")
    _note_verified(ctx, content)


def _note_verified(ctx: Context, content: Content) -> None:
    if content.verified_at < now() - _FRESH:
        with suppress(RegistryError), ctx.db.write() as session:  # the read itself does not depend on it
            store.set_verified(session, content.where)


def read(ctx: Context, content: Content, offset: int, length: int) -> Iterator[bytes]:
    """Yield a range of the bytes. Raises RegistryError `corrupt` at once if they are known to be damaged, missing or
    too short, or if the file is small and has another digest.

    A longer file that is read whole ends with that error before its last bytes, so that nobody has received a whole
    file of wrong bytes. A range of a longer file is not verified.
    """
    if content.state != "ok":
        raise known(content.where, content.name, content.state)
    try:
        if content.size <= SMALL:
            data = b"".join(checked(ctx.blobs.stream(content.where), digest=content.where, size=content.size))
            return iter((data[offset : offset + length],))
        chunks = ctx.blobs.stream(content.where, offset, length, CHUNK)
    except RegistryError as error:
        raise damage.found(ctx, content.where, content.name, error) from error
    return _guarded(ctx, content, chunks, whole=(offset, length) == (0, content.size))


def _guarded(ctx: Context, content: Content, chunks: Iterator[bytes], *, whole: bool) -> Iterator[bytes]:
    sha256 = hashlib.sha256()
    held = b""
    try:
        for chunk in chunks:
            if held:
                yield held
            if whole:
                sha256.update(chunk)
            held = chunk
        if whole and sha256.hexdigest() != content.where.hex:
            raise RegistryError("digest-mismatch", f"The bytes of {content.where} have another digest.")
    except RegistryError as error:
        raise damage.found(ctx, content.where, content.name, error) from error
    if whole:
        _note_verified(ctx, content)
    yield held
