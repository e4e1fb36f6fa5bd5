"""Files of versions for a child process, which has no database: its handler passes digests and sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

from lora_contract.digest import Digest
from lora_kernels.merging import RangeSource
from lora_registry.blobs.hashing import checked
from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.window import Window
from lora_registry.settings import load
from lora_registry.storage import open_blobs


class StoredFile(msgspec.Struct, frozen=True, array_like=True):
    """A blob of the store: the content of a file, without its path."""

    digest: str
    size: int


Files: TypeAlias = dict[str, StoredFile]
"""The stored files of a version, by their paths."""


class ResultFile(msgspec.Struct, frozen=True):
    """A file of a job's result; its bytes are in the store."""

    path: str
    size: int
    digest: str


def blobs() -> BlobStore:
    """Open the blob store that this process's environment names."""
    return open_blobs(load())


def reader(store: BlobStore, files: Files) -> Callable[[str, int, int], bytes]:
    """Return `read(path, offset, length)` over the files of a version, for one thread."""
    windows = {path: Window(store, Digest.parse(file.digest), file.size) for path, file in files.items()}

    def read(path: str, offset: int, length: int) -> bytes:
        return windows[path].read(offset, length)

    return read


def sizes(files: Files) -> dict[str, int]:
    return {path: file.size for path, file in files.items()}


def fetch(store: BlobStore, files: Files, folder: Path) -> None:
    """Write the files of a version to `folder`, verifying digests. Raises RegistryError if one differs."""
    for path, stored in files.items():
        digest = Digest.parse(stored.digest)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for chunk in checked(store.stream(digest), digest=digest, size=stored.size):
                file.write(chunk)


class ThreadSource:
    """Files of a version as a source for kernels, readable from any number of threads: each has its own window."""

    def __init__(self, store: BlobStore, files: Files) -> None:
        self._store = store
        self._files = files
        self._local = threading.local()

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of a file. Raises RegistryError `corrupt` if the file ends early."""
        source: RangeSource | None = getattr(self._local, "source", None)
        if source is None:
            source = RangeSource(reader(self._store, self._files), sizes=sizes(self._files))
            self._local.source = source
        source.read_into(path, offset, buffer)
