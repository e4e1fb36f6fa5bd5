"""Files and folders that appear or change in one step, whatever is killed when, and the space for them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path
from typing import Final

from lora_contract.errors import RegistryError

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def replace_file(target: Path, data: bytes, *, staged: Path, mode: int = 0o666) -> None:
    """Write a file under the name `staged`, sync it and rename it: a reader sees the old content or the new one.

    staged: a new name on the same file system, removed if this fails. mode: before the umask.
    """
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)


def publish_folder(staged: Path, target: Path, *, occupied: bool) -> None:
    """Sync a folder and give it the name `target`; what had that name takes the name `staged`.

    Raises OSError ENOTEMPTY, EEXIST or ENOTDIR if the name is taken although not `occupied`.
    """
    sync_tree(staged)
    if not occupied:
        staged.rename(target)
    elif not _exchange(staged, target):
        # Without an atomic exchange there is a moment without a folder, but never one with half of it.
        aside = staged.with_suffix(".old")
        target.rename(aside)
        staged.rename(target)
        aside.rename(staged)
    sync_folder(target.parent)


def sync_tree(folder: Path) -> None:
    """Sync a folder and all folders in it. Their files are synced when they are written."""
    for part in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(part)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, if the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def check_space(folder: Path, needed: int) -> None:
    """Raise `storage-unavailable` if the disk below `folder` (or its nearest parent) lacks `needed` bytes."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise no_space(folder, needed - free)


def no_space(path: Path, missing: int) -> RegistryError:
    return RegistryError(
        "storage-unavailable",
        f"The disk of {path} is full: {missing} more bytes are needed.",
        hint="Free some space, or name another folder with LORA_REG_CACHE or -o.",
    )


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux: renameat2). False if the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
