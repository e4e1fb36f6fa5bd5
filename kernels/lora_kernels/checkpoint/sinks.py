"""Sinks for the bytes of a merged checkpoint."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from lora_contract.errors import RegistryError

Chunk = bytes | bytearray | memoryview
# Handing a shorter chunk to a thread takes longer than hashing it.
_LONG: Final = 1 << 20


class Sink(Protocol):
    """Accepts whole files. A file is not visible under its final name before it is complete."""

    def write(self, path: str, size: int, chunks: Iterable[Chunk]) -> None:
        """Store a file of exactly `size` bytes. A chunk is valid only until the next one is taken."""


class Hashing:
    """Iterate over chunks and hash them, so that a digest needs no second pass."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = chunks
        self._sha256 = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._chunks:
            self._sha256.update(chunk)
            self.size += len(chunk)
            yield chunk

    @property
    def hexdigest(self) -> str:
        """SHA-256 of the chunks so far, 64 hex digits."""
        return self._sha256.hexdigest()


class HashingBeside(Hashing):
    """Hash long chunks in a thread, while the consumer writes them."""

    def __iter__(self) -> Iterator[Chunk]:
        with ThreadPoolExecutor(1) as thread:
            for chunk in self._chunks:
                self.size += len(chunk)
                if len(chunk) < _LONG:
                    self._sha256.update(chunk)
                    yield chunk
                    continue
                hashed = thread.submit(self._sha256.update, chunk)
                yield chunk
                hashed.result()


class FolderSink:
    """Files of a folder that is not visible under its final name yet (see `checkpoint.staging`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, path: str, size: int, chunks: Iterable[Chunk]) -> None:
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with disk_full(path, size), open(target, "xb", buffering=0) as file:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    count = file.write(view)
                    view = view[count:]
                    written += count
        if written != size:
            raise RegistryError("internal", f"{path} was written with {written} bytes, expected {size}.")


@contextmanager
def disk_full(path: str, size: int) -> Iterator[None]:
    """Translate a failed write of a file of `size` bytes. Raises RegistryError `storage-unavailable`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise RegistryError(
                "storage-unavailable",
                f"{path} has {size} bytes, which exceeds the limit of the file system or of this process.",
                hint="Choose a folder on another file system, or raise `ulimit -f`.",
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RegistryError(
                "storage-unavailable",
                f"The disk is full; writing {path} of {size} bytes failed.",
                hint="Free some space, or choose a folder on another disk.",
            ) from error
        raise


def no_space(path: str, missing: int) -> RegistryError:
    return RegistryError(
        "storage-unavailable",
        f"The disk is full: {path} needs {missing} more bytes.",
        hint="Free some space, or choose a folder on another disk.",
    )
