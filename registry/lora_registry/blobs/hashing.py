"""Hash and count a stream while it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import overload

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.protocols import Chunk, Stored


class Tally:
    """The sha256 and the length in bytes of the chunks read so far."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> Digest:
        return Digest(self._sha256.hexdigest())

    @overload
    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]: ...

    @overload
    def over(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]: ...

    def over(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield each chunk, hashed and copied to bytes, since the producer may reuse its buffer."""
        for chunk in chunks:
            raw = chunk.data if isinstance(chunk, Stored) else chunk
            data = raw if type(raw) is bytes else bytes(raw)
            self._sha256.update(data)
            self.size += len(data)
            yield chunk._replace(data=data) if isinstance(chunk, Stored) else data


def checked(chunks: Iterable[bytes], *, digest: Digest, size: int) -> Iterator[bytes]:
    """Pass the chunks on; end without an error only if they have `size` bytes and this digest.

    So a loop over it that ends normally has verified what it wrote. Raises RegistryError `size-mismatch`, before the
    first surplus byte or at the end if bytes are missing, or `digest-mismatch` at the end.
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
            f"{tally.size} bytes were sent for {digest}; {size} were announced.",
            expected=size,
            found=tally.size,
        )
    if tally.digest != digest:
        raise RegistryError(
            "digest-mismatch",
            f"The {size} bytes sent have the digest {tally.digest}; {digest} was announced.",
            expected=str(digest),
            found=str(tally.digest),
        )
