"""Ranges and iterators over a blob."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.protocols import Reception


def refuse_negative(offset: int, length: int | None) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"offset {offset} and length {length} must not be negative")


def byte_range(*, digest: Digest, size: int, offset: int, length: int | None) -> tuple[int, int]:
    """Return begin and end of a range in a blob of `size` bytes; length None: to the end.

    Raises RegistryError `corrupt` if the blob is shorter, since callers request what a manifest declares.
    """
    refuse_negative(offset, length)
    end = size if length is None else offset + length
    if max(offset, end) > size:
        raise RegistryError(
            "corrupt", f"{digest} has {size} bytes; expected bytes {offset} to {end}.", found=size, expected=end
        )
    return offset, end


def primed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Run a generator up to its first, empty, `yield`; earlier exceptions are raised here.

    A started generator closes its resources when it is dropped; one that never ran does not.
    """
    first = next(chunks)
    assert first == b"", "the first yield only marks that all resources are open"
    return chunks


def feed(reception: Reception, chunks: Iterable[bytes]) -> None:
    """Hand over a whole stream. What `chunks` raises is raised, and nothing is left behind."""
    try:
        for chunk in chunks:
            reception.write(chunk if type(chunk) is bytes else bytes(chunk))
        reception.finish()
    finally:
        reception.discard()
