"""Hash and count a stream while it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

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

    def add(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        self.size += len(data)

    def over(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield each chunk, hashed."""
        for chunk in chunks:
            self.add(chunk.data if isinstance(chunk, Stored) else chunk)
            yield chunk


def kept(chunks: Iterable[Chunk]) -> Iterator[bytes | Stored]:
    """Yield each chunk with bytes of its own, for a reader that holds several of them."""
    for chunk in chunks:
        raw = chunk.data if isinstance(chunk, Stored) else chunk
        data = raw if type(raw) is bytes else bytes(raw)
        yield chunk._replace(data=data) if isinstance(chunk, Stored) else data


class Verifier:
    """Checks a stream against its announced length and digest, chunk by chunk.

    digest None: its length alone; the caller checks its bytes later. what: what it is, in errors; None: its digest.
    """

    def __init__(self, *, digest: Digest | None, size: int, what: str | None = None) -> None:
        self._expected = digest
        self._what = what or str(digest)
        self._size = size
        self._tally = Tally()

    def add(self, chunk: bytes) -> None:
        """Raise RegistryError `size-mismatch` for the first surplus byte."""
        self._tally.add(chunk)
        if self._tally.size > self._size:
            raise RegistryError(
                "size-mismatch",
                f"More than the announced {self._size} bytes were sent for {self._what}.",
                expected=self._size,
            )

    def finish(self) -> None:
        """Raise RegistryError `size-mismatch` or `digest-mismatch` if the stream was not the announced one."""
        size = self._tally.size
        if size != self._size:
            raise RegistryError(
                "size-mismatch",
                f"{size} bytes were sent for {self._what}; {self._size} were announced.",
                expected=self._size,
                found=size,
            )
        if self._expected is not None and (digest := self._tally.digest).hex != self._expected.hex:  # may be an address
            raise RegistryError(
                "digest-mismatch",
                f"The {size} bytes sent have the digest {digest}; {self._expected} was announced.",
                expected=str(self._expected),
                found=str(digest),
            )


def checked(chunks: Iterable[bytes], *, digest: Digest, size: int) -> Iterator[bytes]:
    """Pass the chunks on; end without an error only if they have `size` bytes and this digest.

    So a loop over it that ends normally has verified what it wrote. Raises RegistryError `size-mismatch`, before the
    first surplus byte or at the end if bytes are missing, or `digest-mismatch` at the end.
    """
    verifier = Verifier(digest=digest, size=size)
    for chunk in chunks:
        data = chunk if type(chunk) is bytes else bytes(chunk)
        verifier.add(data)
        yield data
    verifier.finish()
