"""Cut a stream into the parts of a multipart upload: bytes to send, and ranges that the store copies itself.

S3 takes parts of 5 MiB to 5 GiB, the last one may be shorter, and at most 10,000 of them. So a short piece before a run
of stored bytes is filled up from that run, and a short run goes as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from lora_contract.digest import Digest
from lora_registry.blobs.protocols import Chunk, Stored
from lora_registry.blobs.s3_settings import MIB

LEAST: Final = 5 * MIB


class Range(NamedTuple):
    """A part that is `length` bytes of a blob. data: those bytes, to send if the store cannot copy; or None."""

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
    """Cut one stream. copies: True if the store copies ranges; set it after the first copy was tried.

    size: bytes of a body, and the shortest run worth a copy. limit: longest range, in bytes. Holds two bodies at most.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.copies: bool | None = None
        self._size = size
        self._least = min(LEAST, size)
        self._limit = max(limit, size)
        self._body = _Pieces()
        self._run: Range | None = None
        self._held = _Pieces()  # of a run that is not long enough yet; empty once it is

    def parts(self, chunks: Iterable[Chunk]) -> Iterator[bytes | Range]:
        for chunk in chunks:
            if isinstance(chunk, Stored):
                yield from self._stored(memoryview(chunk.data), chunk.digest, chunk.offset)
            else:
                yield from self._end_run()
                yield from self._add(memoryview(chunk))
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
            elif self._run is None and 0 < self._body.size < self._least:
                taken = view[: self._least - self._body.size]
                yield from self._add(taken)
            else:
                run = self._run or Range(digest, offset, 0)
                taken = view[: (self._size if run.length < self._size else self._limit) - run.length]
                yield from self._extend(run, taken)
            offset += len(taken)
            view = view[len(taken) :]

    def _extend(self, run: Range, taken: memoryview) -> Iterator[bytes | Range]:
        if run.length < self._size:
            self._held.append(taken)
        self._run = run = run._replace(length=run.length + len(taken))
        if self._held.size == self._size:
            if self._body.size:
                yield self._body.joined()
            data = self._held.joined()
            if self.copies is None:
                self._run = None
                yield run._replace(data=data)
        if self._run is not None and run.length == self._limit:
            self._run = None
            yield run

    def _end_run(self) -> Iterator[bytes | Range]:
        run, self._run = self._run, None
        if self._held.size:
            yield from self._add(memoryview(self._held.joined()))
        elif run is not None:
            yield run

    def _add(self, view: memoryview) -> Iterator[bytes]:
        while view:
            taken = view[: self._size - self._body.size]
            self._body.append(taken)
            view = view[len(taken) :]
            if self._body.size == self._size:
                yield self._body.joined()


class _Pieces:
    """Views that are sent as one body. Bytes, not a bytearray: boto wraps them without another copy."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[memoryview] = []

    def append(self, view: memoryview) -> None:
        self._pieces.append(view)
        self.size += len(view)

    def joined(self) -> bytes:
        """Take all bytes and reset."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return body
