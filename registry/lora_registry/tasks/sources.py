"""Files of versions for a child process: it holds no database, so its job hands it digests and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_reg.spec.digest import Digest
from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.window import Window
from lora_registry.settings import load
from lora_registry.storage import open_blobs

Files = Mapping[str, Any]
"""path -> [digest, size]: JSON, as a job's step returns it."""


def blobs() -> BlobStore:
    """The blob store that this process's environment names."""
    return open_blobs(load())


def reader(store: BlobStore, files: Files) -> Callable[[str, int, int], bytes]:
    """`read(path, offset, length)` over the files of a version, for one thread."""
    windows = {path: Window(store, Digest.parse(digest), int(size)) for path, (digest, size) in files.items()}

    def read(path: str, offset: int, length: int) -> bytes:
        return windows[path].read(offset, length)

    return read


def sizes(files: Files) -> dict[str, int]:
    return {path: int(size) for path, (_, size) in files.items()}
