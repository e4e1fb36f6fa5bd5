"""Files and folders of a store: synced, and with errors that name no path."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lora_contract.errors import RegistryError
from lora_registry.blobs.protocols import Stored

# Writes of megabytes allocate huge folios; on virtual machines they were measured five times slower than these.
CHUNK: Final = 256 * 1024
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


def open_or_none(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def copy_range(source: int | None, target: int, chunk: Stored) -> int:
    """Append a range of a file inside the file system, sharing blocks if possible. Return the number of bytes copied.

    Returns 0 on any error (another file system, an old kernel, a full disk): writing the bytes reports the real one.
    """
    if source is None:
        return 0
    try:
        return os.copy_file_range(source, target, len(chunk.data), offset_src=chunk.offset)
    except OSError:
        return 0


def write(descriptor: int, chunks: Iterable[bytes | memoryview]) -> None:
    """Write everything, at most CHUNK bytes at a time. An OSError of the source itself propagates unchanged."""
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            with disk():
                written = os.write(descriptor, view[:CHUNK])
            view = view[written:]


@contextmanager
def disk() -> Iterator[None]:
    """Turn an OSError into `storage-unavailable` without naming paths. Handle missing files inside the block."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RegistryError(
                "storage-unavailable",
                "The disk that holds the blobs is full; the write was discarded.",
                hint="Free space on the server's disk and try again.",
            ) from error
        raise RegistryError(
            "storage-unavailable",
            f"The folder of the blobs cannot be used: {error.strerror}.",
            hint="Check the permissions and the disk of the data folder.",
        ) from error


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, each synced in its parent. Safe against concurrent calls."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        # Already removed, or another sweep removed a file of it between listing and removal.
        shutil.rmtree(folder, ignore_errors=True)


def concatenated(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with disk():
            file = path.open("rb", buffering=0)
        with file:
            while True:
                with disk():
                    data = file.read(CHUNK)
                if not data:
                    break
                yield data


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def remove_if_dead(path: Path, created_before: float) -> int:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mtime > created_before:
                return 0
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return 1
    except (BlockingIOError, FileNotFoundError):
        return 0
