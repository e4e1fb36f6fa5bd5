"""Bytes that arrive piece by piece, on their way into a store: see `protocols.Reception`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lora_registry.blobs.disk import write
from lora_registry.blobs.hashing import Verifier

if TYPE_CHECKING:
    from lora_registry.blobs.multipart import Upload  # which imports boto3


class FileReception:
    """A file under `tmp/`, created with its first bytes."""

    def __init__(
        self,
        temporary: AbstractContextManager[tuple[Path, int]],
        verifier: Verifier,
        publish: Callable[[Path, int], None],
    ) -> None:
        self._temporary = temporary
        self._publish = publish
        self._verifier = verifier
        self._open = ExitStack()
        self._file: tuple[Path, int] | None = None

    def write(self, data: bytes) -> None:
        self._verifier.add(data)
        write(self._opened()[1], (data,))

    def finish(self) -> None:
        path, descriptor = self._opened()
        self._verifier.finish()
        self._publish(path, descriptor)

    def discard(self) -> None:
        self._open.close()

    def _opened(self) -> tuple[Path, int]:
        if self._file is None:
            self._file = self._open.enter_context(self._temporary)
        return self._file


class ShortReception:
    """A blob of one PUT, in memory until all its bytes are there."""

    def __init__(self, put: Callable[[bytes], None], verifier: Verifier) -> None:
        self._put = put
        self._verifier = verifier
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._verifier.add(data)
        self._data += data

    def finish(self) -> None:
        self._verifier.finish()
        self._put(bytes(self._data))

    def discard(self) -> None:
        self._data = bytearray()


class LongReception:
    """A multipart upload, begun with its first bytes."""

    def __init__(self, begin: Callable[[], Upload], verifier: Verifier) -> None:
        self._begin = begin
        self._verifier = verifier
        self._upload: Upload | None = None

    def write(self, data: bytes) -> None:
        self._verifier.add(data)
        if self._upload is None:
            self._upload = self._begin()
        self._upload.add(data)

    def finish(self) -> None:
        self._verifier.finish()
        assert self._upload is not None, "the verifier accepts no empty stream for a long blob"
        self._upload.finish()
        self._upload = None

    def discard(self) -> None:
        if self._upload is not None:
            self._upload.abort()
            self._upload = None
