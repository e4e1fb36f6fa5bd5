"""Where the bytes of a merged checkpoint go."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lora_reg.spec.errors import RegistryError

Chunk = bytes | bytearray | memoryview


class Sink(Protocol):
    """Takes whole files. Nothing of a file is visible under its final name before all of its bytes are there."""

    def write(self, path: str, size: int, chunks: Iterable[Chunk]) -> None:
        """Store a file of exactly `size` bytes. A chunk is valid only until the next one is taken."""


class Hashing:
    """Iterates over chunks and hashes them on their way, so that a digest costs no second pass."""

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
        """sha256 of what has passed so far, 64 hex digits."""
        return self._sha256.hexdigest()


class FolderSink:
    """Files of a folder that is not visible under its final name yet (see `staged_folder`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, path: str, size: int, chunks: Iterable[Chunk]) -> None:
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        try:
            with open(target, "xb", buffering=0) as file:
                for chunk in chunks:
                    view = memoryview(chunk)
                    while view:
                        count = file.write(view)
                        view = view[count:]
                        written += count
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise no_space(path, size - written) from error
        if written != size:
            raise RegistryError("internal", f"{path} came out with {written} bytes, expected {size}.")


def no_space(path: str, missing: int) -> RegistryError:
    return RegistryError(
        "storage-unavailable",
        f"The disk is full: {path} needs {missing} more bytes.",
        way_out="Free some space, or choose a folder on another disk.",
    )


@contextmanager
def staged_folder(final: Path, *, needed: int) -> Iterator[Path]:
    """A folder beside `final` that takes its name when the block ends well and is removed when it does not (by the next
    attempt where the process was killed).

    needed: bytes that will be written, so that a disk that is too small is found before the work. Raises RegistryError
    `exists` where `final` is there and not an empty folder, `storage-unavailable` where the disk is too small.
    """
    if final.is_symlink() or (final.exists() and not (final.is_dir() and not any(final.iterdir()))):
        raise RegistryError("exists", f"{final} is there already.", way_out="Choose a folder that does not exist yet.")
    final.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(final.parent).free
    if free < needed:
        raise no_space(str(final), needed - free)
    _remove_leftovers(final)
    staging = final.parent / f".{final.name}.{secrets.token_hex(4)}.partial"
    staging.mkdir()
    lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield staging
        try:
            staging.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise RegistryError("exists", f"{final} was made by somebody else meanwhile.") from error
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)


def _remove_leftovers(final: Path) -> None:
    """Remove what killed processes left beside `final`: the lock of such a folder went with its process."""
    for folder in final.parent.glob(f".{glob.escape(final.name)}.*.partial"):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
