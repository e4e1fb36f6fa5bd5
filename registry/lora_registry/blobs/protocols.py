"""What a blob store promises, by role.

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
    """Bytes of a stream that a blob of the same store holds from `offset` on: the store may copy them by itself.

    data: those very bytes; the digest of the stream is taken from them.
    """

    data: bytes | memoryview
    digest: Digest
    offset: int


Chunk: TypeAlias = bytes | Stored


class BlobReader(Protocol):
    def size(self, digest: Digest) -> int | None:
        """Length in bytes, or None where there is no such blob."""

    def read(self, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        """Exactly `length` bytes from `offset` (to the end where None, of which `offset` may be the very last point).

        For headers and small files: what it returns is in memory as a whole.

        Raises RegistryError `not-found`, or `corrupt` where the blob is shorter than asked for.
        """

    def stream(
        self, digest: Digest, offset: int = 0, length: int | None = None, chunk: int = 256 * 1024
    ) -> Iterator[bytes]:
        """The same, in pieces of at most `chunk` bytes; memory does not grow with the blob.

        Errors known before the first byte are raised by the call, not by the first step of the iterator. The digest is
        not checked here: whoever needs that hashes what passes (`hashing.checked`).
        """


class BlobWriter(Protocol):
    def put(self, chunks: Iterable[bytes], *, digest: Digest, size: int) -> None:
        """Store a blob from a stream, hashing while writing; visible only once length and digest are right.

        Idempotent: putting what is there already is no error. Raises RegistryError `digest-mismatch`,
        `size-mismatch`, `storage-unavailable`; in each case nothing becomes visible and nothing is left behind.
        """

    def put_unknown(self, chunks: Iterable[Chunk]) -> tuple[Digest, int]:
        """Store a stream whose digest is not known before; returns digest and length. Same promises.

        What is `Stored` need not travel: a folder has the kernel copy it, an S3 store copies long runs of it itself.
        """

    def adopt(self, upload: str, *, digest: Digest, size: int) -> None:
        """Turn what a presigned upload left under `uploads/<upload>/<hex>` into a blob.

        Re-hashes what is stored, never trusts the client's word; then moves it to its key. Idempotent for this
        session until `discard_upload`: it remembers what it brought. Raises `not-found` where this session uploaded
        nothing, even if the blob exists (else one could claim the bytes of others by naming them), `digest-mismatch`
        and `size-mismatch`, which remove the upload.
        """

    def discard_upload(self, upload: str) -> None:
        """Remove all that was uploaded under this session, once its blobs are adopted or given up. Idempotent."""

    def sweep(self, *, older_than: float) -> int:
        """Remove what dead writers and forgotten sessions left; returns how many things went.

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
        """A GET for this blob (Range allowed), or None where the store has no presigned URLs.

        `filename` becomes the name under which a browser saves it. Does not ask whether the blob exists.
        `expires_in` is 1 second to 7 days, here and below.
        """

    def presign_put(self, upload: str, digest: Digest, *, size: int, expires_in: int) -> Presigned | None:
        """A PUT bound to length and sha256, to `uploads/<upload>/<hex>`; it may be repeated while it lives.

        The request must carry `headers` as they are. None where there is no such thing: no presigned URLs, or a
        size above what one PUT may carry.
        """


class BlobStore(BlobReader, BlobWriter, BlobDeleter, BlobLister, Presigner, Protocol):
    """Everything together; what the service is wired with."""

    def check(self) -> None:
        """Raise RegistryError `storage-unavailable` where the store does not answer. Cheap: for /readyz."""

    def local_path(self, digest: Digest) -> str | None:
        """The file of a blob where the store is a folder on this machine (for sendfile and mmap).

        None where the store is no folder, or has no such blob.
        """
