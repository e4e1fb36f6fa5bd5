"""Protocols of a blob store, by role.

A blob is immutable: its name is its sha256. Uploads in progress lie under keys of their own and become a blob
only when the digest of what was stored has been checked; so every reader sees whole blobs or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from lora_contract.digest import Digest


class Presigned(msgspec.Struct, frozen=True):
    """A request that a client may send to the store itself, until `expires_in` seconds have passed.

    The URL is a secret while it lives: it is never logged and never stored.
    """

    method: str
    url: str
    headers: dict[str, str]
    expires_in: int


class Stored(NamedTuple):
    """Bytes of a stream that a blob of the same store has from `offset` on, so that the store may copy them itself.

    data: those very bytes; the digest of the stream is taken from them.
    """

    data: bytes | memoryview
    digest: Digest
    offset: int


Chunk: TypeAlias = bytes | Stored


class BlobReader(Protocol):
    def size(self, digest: Digest) -> int | None:
        """Length in bytes, or None if there is no such blob."""

    def read(self, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        """Exactly `length` bytes from `offset` (None: to the end; `offset` may be the end itself).

        For headers and small files: the result is in memory as a whole.

        Raises RegistryError `not-found`, or `corrupt` if the blob is shorter.
        """

    def stream(
        self, digest: Digest, offset: int = 0, length: int | None = None, chunk: int = 256 * 1024
    ) -> Iterator[bytes]:
        """The same, in pieces of at most `chunk` bytes; memory does not grow with the blob.

        Errors known before the first byte are raised by the call, not by the first step of the iterator. The digest is
        not checked here: see `hashing.checked`.
        """


class BlobWriter(Protocol):
    def put(self, chunks: Iterable[bytes], *, digest: Digest, size: int) -> None:
        """Store a blob from a stream, hashing while writing; visible only once length and digest are right.

        Idempotent: storing an existing blob is not an error. Raises RegistryError `digest-mismatch`,
        `size-mismatch`, `storage-unavailable`; in each case nothing becomes visible and nothing is left behind.
        """

    def put_unknown(self, chunks: Iterable[Chunk]) -> tuple[Digest, int]:
        """Store a stream of unknown digest, with the same guarantees. Returns digest and length.

        `Stored` ranges are not sent: a folder lets the kernel copy them, an S3 store copies long ones itself.
        """

    def adopt(self, upload: str, *, digest: Digest, size: int) -> None:
        """Turn a finished presigned upload, `uploads/<upload>/<hex>`, into a blob.

        Hashes the stored bytes, since the client is not trusted, then moves them to their key. Idempotent for this
        session until `discard_upload`: it remembers its uploads. Raises `not-found` if this session uploaded
        nothing, even if the blob exists (or a client could claim others' bytes by their digest), `digest-mismatch`
        and `size-mismatch`, which remove the upload.
        """

    def discard_upload(self, upload: str) -> None:
        """Remove all uploads of this session, after its blobs were adopted or abandoned. Idempotent."""

    def sweep(self, *, older_than: float) -> int:
        """Remove leftovers of dead writers and forgotten sessions. Returns their number.

        `older_than` is in seconds and must exceed the life of the longest upload. Blobs are never touched.
        """


class BlobDeleter(Protocol):
    def delete(self, digest: Digest) -> None:
        """Remove a blob. Idempotent. The caller has made sure that nothing refers to it."""


class BlobLister(Protocol):
    def list(self) -> Iterator[tuple[Digest, int]]:
        """All blobs with their length, in order of their hex digits."""


class Presigner(Protocol):
    def presign_get(self, digest: Digest, *, filename: str | None, expires_in: int) -> Presigned | None:
        """A GET for this blob (Range allowed), or None if the store has no presigned URLs.

        `filename` becomes the name under which a browser saves it. Does not ask whether the blob exists.
        `expires_in` is 1 second to 7 days, here and below.
        """

    def presign_put(self, upload: str, digest: Digest, *, size: int, expires_in: int) -> Presigned | None:
        """A PUT bound to length and sha256, to `uploads/<upload>/<hex>`; it may be repeated until it expires.

        The request must carry `headers` as they are. None if the store has no presigned URLs, or `size` exceeds the
        limit of one PUT.
        """


class BlobStore(BlobReader, BlobWriter, BlobDeleter, BlobLister, Presigner, Protocol):
    """All roles together: the store of the service."""

    def check(self) -> None:
        """Raise RegistryError `storage-unavailable` if the store does not answer. Cheap: for /readyz."""

    def local_path(self, digest: Digest) -> str | None:
        """The path of a blob if the store is a folder on this machine (for sendfile and mmap).

        None if the store is not a folder, or has no such blob.
        """
