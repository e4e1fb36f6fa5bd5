"""Download blobs into the cache: in parallel, resumed after a break, hashed while they are written."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

import httpx2

from lora_contract.errors import RegistryError
from lora_contract.manifest import FileEntry
from lora_contract.reference import Reference
from lora_reg.cache.lock import Interrupted
from lora_reg.cache.store import Cache
from lora_reg.client import Client
from lora_reg.problems import place, unreachable
from lora_reg.progress import Progress

PARALLEL: Final = 4
BREAKS: Final = 5
"""Consecutive broken connections without a new byte before the download fails."""
CHUNK: Final = 1 << 20
_HINT: Final = "Pull again; if this persists, ask an administrator to run `lora-registry fsck`."


def fetch_blobs(client: Client, ref: Reference, entries: list[FileEntry], cache: Cache, progress: Progress) -> int:
    """Download files of a version (`ref` has its digest) into the cache. Returns the bytes received.

    Raises RegistryError `digest-mismatch`, `size-mismatch`, `storage-unavailable`, `unavailable`; the file in question
    is not visible then.
    """
    cache.check_space(sum(entry.size - _present(cache.part(entry.digest)) for entry in entries))
    stop = threading.Event()
    progress.begin("Downloading", sum(entry.size for entry in entries))
    pool = ThreadPoolExecutor(PARALLEL)
    try:
        tasks = [pool.submit(_fetch, client, ref, entry, cache, progress, stop) for entry in entries]
        done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        failed = next((task.exception() for task in done if task.exception()), None)
        if failed is not None:
            raise failed
        return sum(task.result() for task in tasks)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        progress.end()


def _fetch(
    client: Client, ref: Reference, entry: FileEntry, cache: Cache, progress: Progress, stop: threading.Event
) -> int:
    with cache.lock(f"blob-{entry.digest.hex}", stop) as held:
        if cache.has(entry.digest, entry.size):
            progress.advance(entry.size)
            return 0
        part = cache.part(entry.digest)
        if not held:
            # Without a lock another process may write to the same file.
            part = part.with_name(f"{entry.digest.hex}.{secrets.token_hex(6)}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with closing(_Transfer(client, ref, entry, part, progress, stop)) as transfer:
            begun = transfer.resume()
            transfer.run()
            if transfer.hex != entry.digest.hex and begun:
                # The bytes of an earlier download may be the wrong ones: once more from the start.
                transfer.restart()
                transfer.run()
            transfer.sync()
        if transfer.hex != entry.digest.hex:
            part.unlink(missing_ok=True)
            raise RegistryError(
                "digest-mismatch",
                f"{entry.path}: the received bytes have sha256 {transfer.hex[:12]}; expected {entry.digest.hex[:12]}.",
                hint=_HINT,
            )
        cache.adopt(part, entry.digest)
        return transfer.received


class _Transfer:
    """The download of one file: the bytes so far, and their running hash."""

    def __init__(
        self, client: Client, ref: Reference, entry: FileEntry, part: Path, progress: Progress, stop: threading.Event
    ) -> None:
        self._client, self._ref, self._entry = client, ref, entry
        self._progress, self._stop = progress, stop
        self._file: BinaryIO = os.fdopen(
            os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0
        )
        self._hash = hashlib.sha256()
        self._at = 0
        self.received = 0
        """Bytes received over the network."""

    @property
    def hex(self) -> str:
        return self._hash.hexdigest()

    def resume(self) -> int:
        """Hash the bytes of an earlier download. Returns their number."""
        if os.fstat(self._file.fileno()).st_size > self._entry.size:
            self._file.truncate(0)
        while piece := self._file.read(CHUNK):
            self._count(piece)
        return self._at

    def restart(self) -> None:
        """Discard all bytes."""
        self._progress.advance(-self._at)
        self._file.seek(0)
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self._at = 0

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def run(self) -> None:
        """Receive until the file is complete. Raises `size-mismatch`, `unavailable`, or the error of a response."""
        breaks = 0
        furthest = self._at
        while self._at < self._entry.size:
            broke: Exception | None = None
            try:
                self._receive()
            except httpx2.RequestError as error:
                broke = error
            # Compared with the furthest ever: a download that always breaks early and restarts must fail too.
            breaks = 0 if self._at > furthest else breaks + 1
            furthest = max(furthest, self._at)
            if self._at < self._entry.size and breaks >= BREAKS:
                if isinstance(broke, httpx2.HTTPError):
                    raise unreachable(self._client.transport.server, broke, refused=False) from broke
                raise self._wrong_size(f"ended after {self._at}")
            if breaks:
                self._stop.wait(0.1 * 2**breaks)
            if self._stop.is_set():
                raise Interrupted

    def _receive(self) -> None:
        start = self._at
        with self._client.file(self._ref, self._entry.path, start=start, whole=start == 0) as response:
            if start and response.status_code != 206:
                # The range was not served: 200 sends the whole file, 416 nothing.
                self.restart()
            elif start and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
                raise RegistryError("unavailable", f"{place(response.url)} sent a different range than requested.")
            if response.status_code == 416:
                return
            for piece in response.iter_raw():
                if self._stop.is_set():
                    raise Interrupted
                if self._at + len(piece) > self._entry.size:
                    raise self._wrong_size("was longer")
                self._write(piece)

    def _write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]
        self.received += len(piece)
        self._count(piece)

    def _count(self, piece: bytes) -> None:
        self._hash.update(piece)
        self._at += len(piece)
        self._progress.advance(len(piece))

    def _wrong_size(self, how: str) -> RegistryError:
        return RegistryError(
            "size-mismatch",
            f"{self._entry.path} should have {self._entry.size} bytes; the response {how}.",
            hint=_HINT,
        )


def _present(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
