"""Byte sources of checkpoints and adapters."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from lora_contract.errors import RegistryError


class Source(Protocol):
    """Files addressed by the names in a plan.

    scattered: bytes worth holding at once if what is needed lies in many short ranges. windowed: whether a short read
    fetches far more, so that readers share what they read.
    """

    scattered: int
    windowed: bool

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (writable bytes) from `offset` of a file. Raises RegistryError `corrupt` if it ends early."""


class FileSource:
    """Files of this machine, kept open until the end of the `with` block. May be read from several threads.

    place: returns where a file of the plan is.
    """

    scattered = 2 << 20
    windowed = False

    def __init__(self, place: Callable[[str], Path]) -> None:
        self._place = place
        self._descriptors: dict[str, int] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._descriptors.clear()
        self._open.close()

    def descriptor(self, path: str) -> int:
        """The open file descriptor. Raises RegistryError `not-found` if it is missing or not a regular file."""
        known = self._descriptors.get(path)
        if known is not None:
            return known
        place = self._place(path)
        try:
            # O_NONBLOCK: opening a named pipe must not hang.
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise RegistryError("not-found", f"{place} cannot be opened: {error.strerror}.", path=path) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RegistryError("not-found", f"{place} is not a regular file.", path=path)
        kept = self._descriptors.setdefault(path, descriptor)
        if kept != descriptor:
            os.close(descriptor)
            return kept
        self._open.callback(os.close, descriptor)
        return descriptor

    def size(self, path: str) -> int:
        return os.fstat(self.descriptor(path)).st_size

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        descriptor = self.descriptor(path)
        done = 0
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
            if count == 0:
                raise _truncated(path, offset + done, len(buffer) - done)
            done += count

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Like `read_into`, into new memory."""
        buffer = bytearray(length)
        self.read_into(path, offset, memoryview(buffer))
        return bytes(buffer)


class FolderSource(FileSource):
    """Files of a folder, by their paths in it."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(Path(folder).joinpath)


class RangeSource:
    """Files behind a function `read(path, offset, length) -> bytes`, such as a blob store.

    sizes: length of each file, so that no request goes beyond the end. window: bytes per request; consecutive smaller
    reads are served from the last window. For one thread.
    """

    scattered = 32 << 20
    windowed = True

    def __init__(
        self, read: Callable[[str, int, int], bytes], *, sizes: dict[str, int], window: int = 8 * 1024 * 1024
    ) -> None:
        self._read = read
        self._sizes = sizes
        self._window = window
        self._cached: tuple[str, int, memoryview] = ("", 0, memoryview(b""))

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        size = self._sizes[path]
        if offset + len(buffer) > size:
            raise _truncated(path, size, offset + len(buffer) - size)
        done = 0
        while done < len(buffer):
            cached_path, start, cached = self._cached
            at = offset + done
            if cached_path != path or not start <= at < start + len(cached):
                data = self._read(path, at, min(self._window, size - at))
                if not data:
                    raise _truncated(path, at, len(buffer) - done)
                self._cached = (path, at, memoryview(data))
                continue
            part = cached[at - start : at - start + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)


def _truncated(path: str, offset: int, missing: int) -> RegistryError:
    return RegistryError(
        "corrupt", f"{path} ends at byte {offset}, {missing} bytes short of the size in its header.", path=path
    )
