"""Hash and count a stream while it passes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from lora_reg.spec.digest import Digest
from lora_reg.spec.errors import RegistryError


class Tally:
    """The sha256 and the length, in bytes, of what has passed so far."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> Digest:
        return Digest(self._sha256.hexdigest())

    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass each chunk on, after counting it; as bytes, so that what was hashed cannot change before it is stored."""
        for given in chunks:
            chunk = given if type(given) is bytes else bytes(given)
            self._sha256.update(chunk)
            self.size += len(chunk)
            yield chunk


def checked(chunks: Iterable[bytes], *, digest: Digest, size: int) -> Iterator[bytes]:
    """Pass the chunks on and end only if they were `size` bytes with this digest.

    So a loop over it that comes to its end has verified what it wrote. Raises RegistryError `size-mismatch`, before
    the first byte too many is passed on or at the end where bytes are missing, and `digest-mismatch` at the end.
    """
    tally = Tally()
    for chunk in tally.over(chunks):
        if tally.size > size:
            raise RegistryError(
                "size-mismatch", f"More than the announced {size} bytes were sent for {digest}.", expected=size
            )
        yield chunk
    if tally.size != size:
        raise RegistryError(
            "size-mismatch",
            f"{tally.size} bytes were sent for {digest}, {size} were announced.",
            expected=size,
            found=tally.size,
        )
    if tally.digest != digest:
        raise RegistryError(
            "digest-mismatch",
            f"The {size} bytes sent have the digest {tally.digest}, {digest} was announced.",
            expected=str(digest),
            found=str(tally.digest),
        )


def refuse_negative(offset: int, length: int | None) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"offset {offset} and length {length} must not be negative")


def span(*, digest: Digest, size: int, offset: int, length: int | None) -> tuple[int, int]:
    """Begin and end of a range inside a blob of `size` bytes; `length` None means to the end.

    Raises RegistryError `corrupt` where the blob is shorter than asked for: callers ask for what a manifest promises.
    """
    refuse_negative(offset, length)
    end = size if length is None else offset + length
    if max(offset, end) > size:
        raise RegistryError(
            "corrupt", f"{digest} has {size} bytes, bytes {offset} to {end} were asked for.", found=size, expected=end
        )
    return offset, end
