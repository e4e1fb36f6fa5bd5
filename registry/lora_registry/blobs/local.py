"""Blobs in a folder.

Safe with any number of processes on the same folder: each writer has its own file under `tmp/`, hashes while writing,
syncs it to disk, and renames it to its key. A rename over the same blob replaces bytes by equal bytes.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs import keys
from lora_registry.blobs.disk import (
    CHUNK,
    changed,
    concatenated,
    copy_range,
    disk,
    make_folder,
    open_or_none,
    remove,
    remove_if_dead,
    remove_tree,
    sync_folder,
    write,
)
from lora_registry.blobs.hashing import Tally, Verifier, checked
from lora_registry.blobs.protocols import Chunk, Presigned, Reception, Stored
from lora_registry.blobs.receptions import FileReception
from lora_registry.blobs.streams import byte_range, feed, primed, refuse_negative

_READ_ONLY: Final = 0o444
# In seconds. A writer locks its file shortly after it creates it, so a sweep ignores younger files.
_MIN_AGE: Final = 60.0


class LocalStore:
    """A BlobStore in the folder `root`, created if it is missing. Raises `storage-unavailable` if that fails."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tmp = root / keys.TMP
        self._uploads = root / keys.UPLOADS
        with disk():
            for folder in (root / keys.BLOBS, self._tmp, self._uploads):
                make_folder(folder)

    def size(self, digest: Digest) -> int | None:
        with disk():
            try:
                return self.place(digest).stat().st_size
            except FileNotFoundError:
                return None

    def read(self, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        return b"".join(self.stream(digest, offset, length))

    def stream(self, digest: Digest, offset: int = 0, length: int | None = None, chunk: int = CHUNK) -> Iterator[bytes]:
        refuse_negative(offset, length)
        return primed(self._chunks(digest, offset, length, chunk))

    def receive(self, *, digest: Digest, size: int) -> Reception:
        verifier = Verifier(digest=digest, size=size)
        return FileReception(self._temporary(), verifier, lambda path, file: self._publish(path, file, digest))

    def put(self, chunks: Iterable[bytes], *, digest: Digest, size: int) -> None:
        feed(self.receive(digest=digest, size=size), chunks)

    def put_unknown(self, chunks: Iterable[Chunk], *, life: str = "") -> tuple[Digest, int]:
        tally = Tally()
        with self._temporary() as (path, descriptor):
            write(descriptor, self._copy_stored(descriptor, tally.over(chunks)))
            self._publish(path, descriptor, keys.address(tally.digest, life))
        return keys.address(tally.digest, life), tally.size

    def adopt(self, upload: str, *, digest: Digest, size: int) -> None:
        path = self._root / keys.upload_key(upload, digest)
        mark = self._root / keys.adopted_key(upload, digest)
        if numbers := sorted(self.parts(upload, digest)):
            self._join([self._root / keys.part_key(upload, digest, number) for number in numbers], digest, size=size)
            mark.touch()
            return
        with disk():
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError:
                if mark.exists() and self.size(digest) == size:
                    return
                raise RegistryError("not-found", f"Nothing was uploaded for {digest}.") from None
            with file:
                try:
                    for _ in checked(iter(lambda: file.read(CHUNK), b""), digest=digest, size=size):
                        pass
                except RegistryError:
                    path.unlink(missing_ok=True)
                    raise
                mark.touch()
                self._publish(path, file.fileno(), digest)

    def receive_part(self, upload: str, digest: Digest, number: int, *, size: int) -> Reception:
        target = self._root / keys.part_key(upload, digest, number)

        def publish(path: Path, descriptor: int) -> None:
            with disk():
                os.fsync(descriptor)
                make_folder(target.parent)
                path.rename(target)
                sync_folder(target.parent)

        verifier = Verifier(digest=None, size=size, what=f"part {number} of {digest}")
        return FileReception(self._temporary(), verifier, publish)

    def parts(self, upload: str, digest: Digest) -> dict[int, int]:
        found: dict[int, int] = {}
        begin = self._root / keys.upload_key(upload, digest)
        with disk():
            for path in begin.parent.glob(f"{begin.name}{keys.PART}*"):
                number = keys.parse_part_key(path.name)
                if number is not None:
                    found[number] = path.stat().st_size
        return found

    def _join(self, parts: Sequence[Path], digest: Digest, *, size: int) -> None:
        """Join the parts into a new file: a sender that still holds a part open cannot write to the blob."""
        try:
            self.put(concatenated(parts), digest=digest, size=size)
        except RegistryError as error:
            if error.code == "digest-mismatch":
                remove(parts)
            raise
        remove(parts)

    def discard_upload(self, upload: str) -> None:
        with disk():
            remove_tree(self._root / keys.upload_prefix(upload))

    def delete(self, digest: Digest) -> None:
        with disk():
            self.place(digest).unlink(missing_ok=True)

    def list(self) -> Iterator[tuple[Digest, int]]:
        base = self._root / keys.BLOBS
        with disk():
            shards = sorted(entry.name for entry in os.scandir(base) if entry.is_dir(follow_symlinks=False))
        for shard in shards:
            with disk():
                names = sorted(os.listdir(base / shard))
            for name in names:
                digest = keys.parse_blob_key(f"{keys.BLOBS}{shard}/{name}")
                size = None if digest is None else self.size(digest)
                if digest is not None and size is not None:
                    yield digest, size

    def presign_get(self, digest: Digest, *, filename: str | None, expires_in: int) -> Presigned | None:  # noqa: ARG002
        return None

    def presign_put(self, upload: str, digest: Digest, *, size: int, expires_in: int) -> Presigned | None:  # noqa: ARG002
        return None

    def presign_part(self, *_: object, **__: object) -> None:
        return None

    def presign_plain(self, *_: object, **__: object) -> None:
        return None

    def check(self) -> None:
        with self._temporary() as (_, descriptor):
            write(descriptor, (bytes(CHUNK),))  # a full disk still creates empty files

    def local_path(self, digest: Digest) -> str | None:
        path = self.place(digest)
        return str(path) if path.exists() else None

    def place(self, digest: Digest) -> Path:
        """Return where a blob is, or would be."""
        return self._root / keys.blob_key(digest)

    def sweep(self, *, older_than: float) -> int:
        """Remove unlocked files of dead writers at once, and upload sessions after `older_than` seconds."""
        removed = 0
        now = time.time()
        with disk():
            for path in self._tmp.glob("put-*"):
                removed += remove_if_dead(path, now - _MIN_AGE)
            for folder in self._uploads.iterdir():
                times = [changed(entry) for entry in (folder, *folder.glob("*"))]
                if max(times) < now - older_than:
                    remove_tree(folder)
                    removed += 1
        return removed

    def _chunks(self, digest: Digest, offset: int, length: int | None, chunk: int) -> Iterator[bytes]:
        with disk():
            try:
                file = self.place(digest).open("rb", buffering=0)
            except FileNotFoundError:
                raise RegistryError("not-found", f"There is no blob {digest}.") from None
        with file:
            size = os.fstat(file.fileno()).st_size
            position, end = byte_range(digest=digest, size=size, offset=offset, length=length)
            yield b""
            while position < end:
                with disk():
                    data = os.pread(file.fileno(), min(chunk, end - position), position)
                if not data:
                    raise RegistryError("corrupt", f"{digest} ended at byte {position}; expected {end}.")
                position += len(data)
                yield data

    def _copy_stored(self, descriptor: int, chunks: Iterable[Chunk]) -> Iterator[bytes | memoryview]:
        """Let the kernel append stored ranges; yield the other bytes, and those that the kernel could not copy."""
        with ExitStack() as stack:
            sources: dict[Digest, int | None] = {}
            for chunk in chunks:
                if not isinstance(chunk, Stored):
                    yield chunk
                    continue
                if chunk.digest not in sources:
                    sources[chunk.digest] = source = open_or_none(self.place(chunk.digest))
                    if source is not None:
                        stack.callback(os.close, source)
                yield memoryview(chunk.data)[copy_range(sources[chunk.digest], descriptor, chunk) :]

    @contextmanager
    def _temporary(self) -> Iterator[tuple[Path, int]]:
        """Create a locked file under `tmp/`, removed at the end unless it was published."""
        path = self._tmp / f"put-{os.getpid()}-{secrets.token_hex(8)}"
        with disk():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with disk():
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield path, descriptor
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _publish(self, path: Path, descriptor: int, digest: Digest) -> None:
        """Sync the content, rename the file, sync the folder: a power failure leaves the whole blob or none."""
        target = self.place(digest)
        with disk():
            os.fchmod(descriptor, _READ_ONLY)
            os.fsync(descriptor)
            make_folder(target.parent)
            try:
                path.rename(target)
            except FileNotFoundError:
                # Another process has just adopted the same upload.
                if not target.exists():
                    raise
            sync_folder(target.parent)
