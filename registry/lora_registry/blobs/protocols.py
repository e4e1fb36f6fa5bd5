"""Protocols of a blob store, by role.

A blob is immutable and named by its sha256. Uploads in progress have keys of their own and become blobs only after the
digest of the stored bytes has been checked; so readers see whole blobs or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from lora_contract.digest import Digest


class Presigned(msgspec.Struct, frozen=True):
    """A request that a client may send directly to the store, for `expires_in` seconds.

    The URL is a secret until it expires: never log or store it.
    """

    method: str
    url: str
    headers: dict[str, str]
    expires_in: int


class Stored(NamedTuple):
    """Bytes of a stream that a blob of the same store contains at `offset`, so that the store may copy them.

    data: these bytes, from which the stream's digest is computed; it may be overwritten when the next chunk is taken.
    """

    data: bytes | memoryview
    digest: Digest
    offset: int


Chunk: TypeAlias = bytes | memoryview | Stored
"""A view may be overwritten when the next chunk is taken."""


class BlobReader(Protocol):
    def size(self, digest: Digest) -> int | None:
        """Return the length in bytes; None if the blob does not exist."""

    def read(self, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset` (None: to the end; `offset` may be the end itself).

        For headers and small files: the whole result is in memory.

        Raises RegistryError `not-found`, or `corrupt` if the blob is shorter.
        """

    def stream(
        self, digest: Digest, offset: int = 0, length: int | None = None, chunk: int = 256 * 1024
    ) -> Iterator[bytes]:
        """Yield the same bytes in chunks of at most `chunk` bytes; memory does not grow with the blob.

        Errors known before the first byte are raised by the call, not by the iterator. The digest is not checked here:
        see `hashing.checked`.
        """


class Reception(Protocol):
    """A blob whose bytes arrive one after another. Its methods may be called by different threads, one at a time.

    Between the calls it holds a file or an unfinished upload, but no thread: bytes may be slow to come. After an
    error only `discard` may be called.
    """

    def write(self, data: bytes) -> None:
        """Hash and store the next bytes. Raises RegistryError `size-mismatch`, `storage-unavailable`."""

    def finish(self) -> None:
        """Make the blob visible. Raises RegistryError `size-mismatch`, `digest-mismatch`, `storage-unavailable`."""

    def discard(self) -> None:
        """Release what is held; without `finish`, nothing of the bytes is left behind. Idempotent."""


class ChunkWriter(Protocol):
    """Stores whole streams: all that jobs need."""

    def put(self, chunks: Iterable[bytes], *, digest: Digest, size: int) -> None:
        """Store a blob from a stream, hashing while writing; visible only after length and digest are verified.

        Idempotent: storing an existing blob is not an error. Raises RegistryError `digest-mismatch`,
        `size-mismatch`, `storage-unavailable`; in each case nothing becomes visible or is left behind.
        """

    def put_unknown(self, chunks: Iterable[Chunk], *, life: str = "") -> tuple[Digest, int]:
        """Store a stream of unknown digest, with the same guarantees. Return address and length.

        `Stored` ranges are not sent: a folder lets the kernel copy them, an S3 store copies long ones itself. life: of
        the address, see `keys.BlobAddress`; wherever else a digest names a blob, it may be an address.
        """


class JobStore(BlobReader, ChunkWriter, Protocol):
    """What the child of a job does with blobs."""


class BlobWriter(ChunkWriter, Protocol):
    def receive(self, *, digest: Digest, size: int) -> Reception:
        """Begin a blob whose bytes are handed over piece by piece. The caller must `discard` it in the end."""

    def adopt(self, upload: str, *, digest: Digest, size: int) -> None:
        """Turn a finished presigned upload, `uploads/<upload>/<hex>`, or its parts into a blob.

        Hashes the stored bytes, since the client is not trusted, then moves them to their key. Idempotent for this
        session until `discard_upload`. Raises `not-found` if this session uploaded nothing, even if the blob exists
        (otherwise a client could claim others' bytes by their digest), and `digest-mismatch` or `size-mismatch`, which
        remove the upload.
        """

    def receive_part(self, upload: str, digest: Digest, number: int, *, size: int) -> Reception:
        """Begin part `number` (from 1) of an upload in progress, as `receive`; its digest is not checked. A part that
        is sent again replaces the one before."""

    def parts(self, upload: str, digest: Digest) -> dict[int, int]:
        """Return the parts that are stored: their lengths in bytes by number."""

    def discard_upload(self, upload: str) -> None:
        """Remove all uploads of this session. Idempotent."""

    def sweep(self, *, older_than: float) -> int:
        """Remove leftovers of dead writers and abandoned sessions. Return their number.

        `older_than` is in seconds and must exceed the duration of the longest upload. Blobs are never touched.
        """


class BlobDeleter(Protocol):
    def delete(self, digest: Digest) -> None:
        """Remove a blob. Idempotent. The caller must ensure that nothing refers to it."""


class BlobLister(Protocol):
    def list(self) -> Iterator[tuple[Digest, int]]:
        """Yield all blobs with their length, in order of their hex digits."""


class Presigner(Protocol):
    def presign_get(self, digest: Digest, *, filename: str | None, expires_in: int) -> Presigned | None:
        """Return a GET for this blob (Range allowed); None if the store has no presigned URLs.

        `filename` is the name under which a browser saves it. Does not check whether the blob exists.
        `expires_in` is 1 second to 7 days, here and below.
        """

    def presign_put(self, upload: str, digest: Digest, *, size: int, expires_in: int) -> Presigned | None:
        """Return a PUT to `uploads/<upload>/<hex>`, bound to length and sha256, repeatable until it expires.

        The request must include `headers` unchanged. None if the store has no presigned URLs, or `size` exceeds the
        limit of one PUT.
        """

    def presign_part(
        self, upload: str, digest: Digest, number: int, *, part: Digest, size: int, expires_in: int
    ) -> Presigned | None:
        """Return a PUT for part `number` of an upload, bound to the part's length and sha256, as presign_put does."""

    def presign_plain(
        self, upload: str, digest: Digest, number: int | None, *, size: int, expires_in: int
    ) -> Presigned | None:
        """Return a PUT for an upload, or for part `number` of it, that is bound to its length alone.

        For clients that cannot send headers; `adopt` finds wrong bytes.
        """


class BlobStore(BlobReader, BlobWriter, BlobDeleter, BlobLister, Presigner, Protocol):
    """All roles together: the store of the service."""

    def check(self) -> None:
        """Raise RegistryError `storage-unavailable` if the store does not answer. Cheap: for /readyz."""

    def local_path(self, digest: Digest) -> str | None:
        """Return the path of a blob if the store is a folder on this machine (for sendfile and mmap).

        None if the store is not a folder or does not have the blob.
        """
