"""Scratch folders of child processes, on the disk of the data folder.

A child may be killed at any moment. A lock, released with its process, marks its folder as in use: a child that opens
a folder, and the worker now and then, removes the folders that are not locked.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NAME: Final = "scratch"


@contextmanager
def folder(data: Path) -> Iterator[Path]:
    """Create an empty folder under `data`, removed at the end of the block or, if the process is killed, by the
    next call."""
    path = data / NAME / f"{os.getpid()}-{secrets.token_hex(4)}"
    with _registering(data):
        _sweep(data)
        path.mkdir()
        lock = _lock(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep(data: Path) -> int:
    """Remove the folders of dead processes; return their number."""
    with _registering(data):
        return _sweep(data)


@contextmanager
def _registering(data: Path) -> Iterator[None]:
    """One process at a time, so that none sees a folder that is created but not yet locked."""
    (data / NAME).mkdir(parents=True, exist_ok=True)
    lock = _lock(data / NAME)
    try:
        yield
    finally:
        os.close(lock)


def _sweep(data: Path) -> int:
    removed = 0
    for found in sorted((data / NAME).iterdir()):
        try:
            lock = _lock(found, wait=False)
        except OSError:  # in use, or removed in the meantime
            continue
        shutil.rmtree(found, ignore_errors=True)
        os.close(lock)
        removed += 1
    return removed


def _lock(path: Path, *, wait: bool = True) -> int:
    """Return the descriptor that holds the lock on a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
