"""Read-ahead buffer: small reads of a blob without a request for each."""

from __future__ import annotations

from typing import Final

from lora_contract.digest import Digest
from lora_registry.blobs.protocols import BlobReader

READ_AHEAD: Final = 4 * 1024 * 1024


class Window:
    """Reads a blob of `size` bytes in any order, with a buffer of READ_AHEAD bytes. For one thread.

    A check reads an adapter tensor by tensor, which would be one S3 request per tensor.
    """

    def __init__(self, blobs: BlobReader, digest: Digest, size: int) -> None:
        self._blobs = blobs
        self._digest = digest
        self._size = size
        self._start = 0
        self._buffer = b""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`. Raises RegistryError `corrupt` if the blob is shorter."""
        if length == 0:
            return b""
        if not (self._start <= offset and offset + length <= self._start + len(self._buffer)):
            if length >= READ_AHEAD or offset + length > self._size:
                return self._blobs.read(self._digest, offset, length)
            self._start = offset
            self._buffer = self._blobs.read(self._digest, offset, min(READ_AHEAD, self._size - offset))
        begin = offset - self._start
        return self._buffer[begin : begin + length]
