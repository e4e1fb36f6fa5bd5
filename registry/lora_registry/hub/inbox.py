"""The files that arrive inside a commit: hashed on the way, and stored once their end and their path are known."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.hub import uploads
from lora_registry.hub.content import is_left_out
from lora_registry.push import sessions
from lora_registry.repositories.paths import RepositoryPath

CHUNK: Final = 1024 * 1024
IN_MEMORY: Final = 1024 * 1024
"""Longer files wait in a temporary file: their digest, which names them in the store, is known only at their end."""

Received = Callable[[str, str, int], None]


class StoringInbox:
    """Stores the files of one commit. Its methods do I/O; call them one at a time, and close it in the end.

    received: called with path, digest and size of each file; by-products of trainers have no digest.
    """

    def __init__(self, caller: Caller, path: RepositoryPath, received: Received) -> None:
        self._caller = caller
        self._path = path
        self._received = received
        self._limit = caller.ctx.settings.max_file_bytes
        self._session: str | None = None
        self._file: Any = None
        self._sha256 = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        if self._file is None:
            folder = self._caller.ctx.settings.data
            place = str(folder) if folder.is_dir() else None
            self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=place)  # noqa: SIM115, `_reset` closes it
        self._size += len(data)
        if self._size > self._limit:
            raise RegistryError("too-large", f"A file of the commit has more than {self._limit} bytes.")
        self._sha256.update(data)
        self._file.write(data)

    def end(self, path: str) -> None:
        if is_left_out(path):
            self._received(path, "", self._size)
        else:
            digest = Digest(self._sha256.hexdigest())
            self._store(digest)
            self._received(path, str(digest), self._size)
        self._reset()

    def close(self) -> None:
        """Forget the files that nothing refers to by now."""
        self._reset()
        if self._session is not None:
            uploads.discard(self._caller.ctx, self._session)
            self._session = None

    def _store(self, digest: Digest) -> None:
        if self._session is None:
            self._session, _ = uploads.open_session(self._caller, self._path, {})
        if not uploads.announce(self._caller, self._path, self._session, digest, self._size):
            return
        reception = sessions.receive(self._caller, self._session, digest)
        try:
            for piece in self._pieces():
                reception.write(piece)
            reception.finish(b"")
        finally:
            reception.close()

    def _pieces(self) -> Iterator[bytes]:
        if self._file is None:
            return
        self._file.seek(0)
        while piece := self._file.read(CHUNK):
            yield piece

    def _reset(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._sha256, self._size = None, hashlib.sha256(), 0
