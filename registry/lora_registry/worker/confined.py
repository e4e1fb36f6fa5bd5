"""What the children of this worker may do."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable
from typing import Final

from lora_registry.blobs import keys
from lora_registry.blobs.protocols import BlobStore
from lora_registry.blobs.remote import digests_in, serve
from lora_registry.processes.children import ServeBlobs
from lora_registry.processes.confinement import Confinement, missing
from lora_registry.settings import ServiceSettings
from lora_registry.storage import local_root
from lora_registry.worker import scratch

log = logging.getLogger(__name__)

CHILDREN: Final = "lora_registry.worker.children."
_STORING: Final = frozenset({CHILDREN + "derive", CHILDREN + "merge", CHILDREN + "vocabulary"})
"""Modules whose functions store blobs. The others read what strangers sent."""

_CACHES: Final = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME")


def limits(settings: ServiceSettings) -> Callable[[str], Confinement]:
    """Return the confinement by module. Creates the folders that children share, and names them to the libraries."""
    data = settings.data.resolve()
    shared = data / scratch.NAME
    shared.mkdir(parents=True, exist_ok=True)
    caches = data / "cache"
    caches.mkdir(exist_ok=True)
    for name in _CACHES:
        os.environ.setdefault(name, str(caches))
    root = local_root(settings)
    blobs = [] if root is None else [str(root.resolve() / folder) for folder in (keys.BLOBS, keys.TMP)]
    folders = (str(shared), "/dev/shm", tempfile.gettempdir(), *(os.environ[name] for name in _CACHES))

    def of(module: str) -> Confinement:
        stores = module in _STORING
        return Confinement(
            files=True,
            read=() if stores else tuple(blobs),
            write=(*folders, *(blobs if stores else ())),
            memory=settings.job_memory_bytes,
        )

    return of


def serving(blobs: BlobStore) -> ServeBlobs:
    """Serve blobs of a server to children, which have no credentials for it."""

    def run(control: socket.socket, module: str, request: str) -> None:
        serve(control, blobs, blobs if module in _STORING else None, digests_in(request))

    return run


def warn() -> None:
    """Log what this kernel cannot forbid children of jobs."""
    if found := missing():
        log.warning(
            "This kernel cannot forbid children of jobs %s; give workers their own machine or container.",
            " and ".join(found),
        )
