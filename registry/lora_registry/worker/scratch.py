"""Working folders of child processes, on the disk of the data folder.

A child may be killed at any moment. Its folder is recognized by its lock, which is released with the process: a child
that opens its own folder, and the worker now and then, removes those that are not locked.
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
    """An empty folder under `data`, removed at the end of the block, or with the next one if the
    process is killed."""
    made = data / NAME / f"{os.getpid()}-{secrets.token_hex(4)}"
    with _registering(data):
        _sweep(data)
        made.mkdir()
        lock = _lock(made)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def sweep(data: Path) -> int:
    """Remove the folders of dead processes; returns how many."""
    with _registering(data):
        return _sweep(data)


@contextmanager
def _registering(data: Path) -> Iterator[None]:
    """One process at a time: no folder is seen between its making and its locking."""
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
        except OSError:  # held by the living, or gone meanwhile
            continue
        shutil.rmtree(found, ignore_errors=True)
        os.close(lock)
        removed += 1
    return removed


def _lock(path: Path, *, wait: bool = True) -> int:
    """The descriptor that holds the lock on a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
