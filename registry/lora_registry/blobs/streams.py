"""Ranges and iterators over a blob."""

from __future__ import annotations

from collections.abc import Iterator

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError


def refuse_negative(offset: int, length: int | None) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"offset {offset} and length {length} must not be negative")


def span(*, digest: Digest, size: int, offset: int, length: int | None) -> tuple[int, int]:
    """Begin and end of a range inside a blob of `size` bytes; `length` None means to the end.

    Raises RegistryError `corrupt` if the blob is shorter: callers ask for what a manifest promises.
    """
    refuse_negative(offset, length)
    end = size if length is None else offset + length
    if max(offset, end) > size:
        raise RegistryError(
            "corrupt", f"{digest} has {size} bytes, bytes {offset} to {end} were asked for.", found=size, expected=end
        )
    return offset, end


def begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Run a generator up to its first, empty, `yield`; an exception before that is raised here.

    A generator that has begun closes its resources when it is dropped; one that never ran does not.
    """
    first = next(pieces)
    assert first == b"", "the first yield only marks that everything is open"
    return pieces
