"""Split a stream into the parts of a multipart upload: bytes to send, and ranges that the store copies itself.

S3 accepts at most 10,000 parts of 5 MiB to 5 GiB; only the last may be shorter. So short data before a run of stored
bytes is filled up from that run, and a short run is sent as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from lora_contract.digest import Digest
from lora_registry.blobs.keys import MAX_PARTS
from lora_registry.blobs.protocols import Chunk, Stored
from lora_registry.blobs.s3_settings import MIB

MIN_PART: Final = 5 * MIB


def part_size_for(size: int, wanted: int) -> int:
    """Return the requested part size, or a larger one that fits `size` bytes into the 10,000 parts that S3 allows."""
    minimum = -(-size // MAX_PARTS)
    return max(wanted, -(-minimum // MIB) * MIB)


class Range(NamedTuple):
    """A part of `length` bytes of a blob. data: those bytes, to send if the store cannot copy; or None."""

    digest: Digest
    offset: int
    length: int
    data: bytes | None = None

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def header(self) -> str:
        return f"bytes={self.offset}-{self.end - 1}"


class Cutter:
    """Splits one stream. Set `copies` to whether the store copies ranges, once the first copy was tried.

    size: bytes of a body, and the shortest run worth a copy. limit: longest range, in bytes. Holds at most two bodies.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.copies: bool | None = None
        self._size = size
        self._min_part = min(MIN_PART, size)
        self._limit = max(limit, size)
        self._body = _Buffer()
        self._run: Range | None = None
        self._buffered = _Buffer()  # of a run that is still too short; empty once it is long enough

    def parts(self, chunks: Iterable[Chunk]) -> Iterator[bytes | Range]:
        for chunk in chunks:
            yield from self.add(chunk)
        yield from self.end()

    def add(self, chunk: Chunk) -> Iterator[bytes | Range]:
        """Yield the parts that this chunk completes."""
        if isinstance(chunk, Stored):
            yield from self._stored(memoryview(chunk.data), chunk.digest, chunk.offset)
        else:
            yield from self._end_run()
            yield from self._add(memoryview(chunk))

    def end(self) -> Iterator[bytes | Range]:
        """Yield what is left."""
        yield from self._end_run()
        if self._body.size:
            yield self._body.joined()

    def _stored(self, view: memoryview, digest: Digest, offset: int) -> Iterator[bytes | Range]:
        while view:
            if self._run is not None and (self._run.digest, self._run.end) != (digest, offset):
                yield from self._end_run()
            if self.copies is False:
                taken = view
                yield from self._add(taken)
            elif self._run is None and 0 < self._body.size < self._min_part:
                taken = view[: self._min_part - self._body.size]
                yield from self._add(taken)
            else:
                run = self._run or Range(digest, offset, 0)
                taken = view[: (self._size if run.length < self._size else self._limit) - run.length]
                yield from self._extend(run, taken)
            offset += len(taken)
            view = view[len(taken) :]

    def _extend(self, run: Range, taken: memoryview) -> Iterator[bytes | Range]:
        if run.length < self._size:
            self._buffered.append(taken)
        self._run = run = run._replace(length=run.length + len(taken))
        if self._buffered.size == self._size:
            if self._body.size:
                yield self._body.joined()
            data = self._buffered.joined()
            if self.copies is None:
                self._run = None
                yield run._replace(data=data)
        if self._run is not None and run.length == self._limit:
            self._run = None
            yield run

    def _end_run(self) -> Iterator[bytes | Range]:
        run, self._run = self._run, None
        if self._buffered.size:
            yield from self._add(memoryview(self._buffered.joined()))
        elif run is not None:
            yield run

    def _add(self, view: memoryview) -> Iterator[bytes]:
        while view:
            taken = view[: self._size - self._body.size]
            self._body.append(taken)
            view = view[len(taken) :]
            if self._body.size == self._size:
                yield self._body.joined()


class _Buffer:
    """Views to send as one body. Joined to bytes, not a bytearray: boto wraps bytes without another copy."""

    def __init__(self) -> None:
        self.size = 0
        self._views: list[memoryview] = []

    def append(self, view: memoryview) -> None:
        self._views.append(view)
        self.size += len(view)

    def joined(self) -> bytes:
        """Return all bytes and reset."""
        body = b"".join(self._views)
        self._views.clear()
        self.size = 0
        return body
