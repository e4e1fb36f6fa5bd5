"""Small reads of a blob without a request each: a read also fetches what follows."""

from __future__ import annotations

from typing import Final

from lora_contract.digest import Digest
from lora_registry.blobs.protocols import BlobReader

AHEAD: Final = 4 * 1024 * 1024


class Window:
    """Reads a blob of `size` bytes in any order, keeping the last AHEAD bytes fetched. For one thread.

    A check reads an adapter tensor by tensor; from an S3 store that would be a request for each.
    """

    def __init__(self, blobs: BlobReader, digest: Digest, size: int) -> None:
        self._blobs = blobs
        self._digest = digest
        self._size = size
        self._start = 0
        self._held = b""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises RegistryError `corrupt` if the blob is shorter."""
        if length == 0:
            return b""
        if not (self._start <= offset and offset + length <= self._start + len(self._held)):
            if length >= AHEAD or offset + length > self._size:
                return self._blobs.read(self._digest, offset, length)
            self._start = offset
            self._held = self._blobs.read(self._digest, offset, min(AHEAD, self._size - offset))
        begin = offset - self._start
        return self._held[begin : begin + length]
