"""Files of versions for a child process, which has no database: its handler passes digests and sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.sources import FileSource, RangeSource, Source
from lora_registry.blobs.damage import damaged, verify
from lora_registry.blobs.hashing import checked
from lora_registry.blobs.keys import address
from lora_registry.blobs.local import LocalStore
from lora_registry.blobs.protocols import BlobReader, JobStore
from lora_registry.blobs.remote import RemoteStore
from lora_registry.blobs.window import Window
from lora_registry.processes.child import blob_socket
from lora_registry.settings import load
from lora_registry.storage import open_blobs


class StoredFile(msgspec.Struct, frozen=True, array_like=True):
    """A blob of the store: the content of a file, without its path. life: see `blobs.keys.BlobAddress`."""

    digest: str
    size: int
    life: str = ""

    @property
    def where(self) -> Digest:
        return address(Digest.parse(self.digest), self.life)


Files: TypeAlias = dict[str, StoredFile]
"""The stored files of a version, by their paths."""


class ResultFile(msgspec.Struct, frozen=True):
    """A file of a job's result; its bytes are in the store.

    life: of the object that the job made; None: the file is one of an input, as it is.
    """

    path: str
    size: int
    digest: str
    life: str | None = None

    @classmethod
    def made(cls, path: str, size: int, where: Digest) -> ResultFile:
        return cls(path, size, str(where), getattr(where, "life", ""))

    @property
    def where(self) -> Digest:
        return address(Digest.parse(self.digest), self.life or "")


def blobs() -> JobStore:
    """Open the blob store: through the parent process, or the folder that this process's environment names."""
    control = blob_socket()
    return open_blobs(load()) if control is None else RemoteStore(control)


def reader(store: BlobReader, files: Files) -> Callable[[str, int, int], bytes]:
    """Return `read(path, offset, length)` over the files of a version, for one thread."""
    windows = {path: Window(store, file.where, file.size) for path, file in files.items()}

    def read(path: str, offset: int, length: int) -> bytes:
        try:
            return windows[path].read(offset, length)
        except RegistryError as error:
            raise damaged(files[path].where, path, error) from error

    return read


@contextmanager
def opened(store: BlobReader, files: Files) -> Iterator[Source]:
    """Open the files of a version as a source for kernels that several threads may read. Those of a folder are read in
    place, without the two copies that a window takes."""
    if isinstance(store, LocalStore):
        with FileSource(lambda path: store.place(files[path].where)) as source:
            yield source
    else:
        yield ThreadSource(store, files)


def sizes(files: Files) -> dict[str, int]:
    return {path: file.size for path, file in files.items()}


def fetch(store: BlobReader, files: Files, folder: Path) -> None:
    """Write the files of a version to `folder`, verifying digests. Raises RegistryError `corrupt` if one differs."""
    for path, stored in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("xb") as file:
                for chunk in checked(store.stream(stored.where), digest=stored.where, size=stored.size):
                    file.write(chunk)
        except RegistryError as error:
            raise damaged(stored.where, path, error) from error


def verify_all(store: BlobReader, files: Files) -> None:
    """Compare files with their digests. Raises RegistryError `corrupt` if one is damaged or missing."""
    for path, stored in files.items():
        verify(store, stored.where, stored.size, path)


@contextmanager
def blaming_the_store(store: BlobReader, *versions: Files) -> Iterator[None]:
    """Before work on files is said to have failed because of their content, compare them with their digests.

    Raises RegistryError `corrupt` instead if one is damaged or missing.
    """
    try:
        yield
    except RegistryError as error:
        if not error.kind.retryable and "blob" not in error.facts:
            for files in versions:
                verify_all(store, files)
        raise


class Verification:
    """Compares files with their digests in a thread, beside work that reads ranges of them. `finish` must be called
    before a result is stored.

    A second reading costs little: a folder's files are in the page cache, and hashing releases the interpreter lock.
    """

    def __init__(self, store: BlobReader, *versions: Files) -> None:
        self._store = store
        self._versions = versions
        self._error: RegistryError | None = None
        self._thread = threading.Thread(target=self._run, name="verification", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the end. Raises RegistryError `corrupt` if a file is damaged or missing."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for files in self._versions:
                verify_all(self._store, files)
        except RegistryError as error:
            self._error = error


class ThreadSource:
    """Files of a version as a source for kernels, readable from any number of threads: each has its own window."""

    scattered = RangeSource.scattered
    windowed = True

    def __init__(self, store: BlobReader, files: Files) -> None:
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
