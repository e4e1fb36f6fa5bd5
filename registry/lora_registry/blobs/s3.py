"""Blobs in a bucket.

Bytes are hashed before they appear under a blob's key: short blobs in memory, long ones while their parts are sent (a
multipart upload becomes visible only on completion), client uploads before they are copied. Conditional PUTs avoid
rewriting existing blobs, if supported; nothing depends on them, because equal keys mean equal bytes.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs import keys
from lora_registry.blobs.hashing import Tally, Verifier, checked, kept
from lora_registry.blobs.protocols import Chunk, Presigned, Reception, Stored
from lora_registry.blobs.receptions import LongReception, ShortReception
from lora_registry.blobs.s3_client import StoreResponseError, make_client
from lora_registry.blobs.s3_objects import Objects
from lora_registry.blobs.s3_settings import S3Settings
from lora_registry.blobs.streams import byte_range, feed, primed, refuse_negative

_CHUNK: Final = 256 * 1024
_TYPE: Final = "application/octet-stream"


def connect(url: str, settings: S3Settings) -> S3Store:
    """Open the store at `s3://bucket[/prefix]`, without a request. Raises RegistryError `usage` for other URLs."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or {"@", ":"} & set(parts.netloc) or parts.query or parts.fragment:
        raise RegistryError("usage", "A storage URL is s3://bucket or s3://bucket/prefix, without credentials.")
    return S3Store(bucket=parts.netloc, prefix=parts.path.strip("/"), client=make_client(settings), settings=settings)


class _Part(NamedTuple):
    """A stored part of an upload. size: in bytes."""

    number: int
    key: str
    etag: str
    size: int


class S3Store:
    """A BlobStore in `bucket` under `prefix` (may be empty), through a boto3 `client`. Thread-safe."""

    def __init__(self, *, bucket: str, prefix: str, client: Any, settings: S3Settings) -> None:
        folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._objects = Objects(bucket=bucket, prefix=folder, client=client, settings=settings)
        self._settings = settings

    def size(self, digest: Digest) -> int | None:
        head = self._objects.head(keys.blob_key(digest))
        return None if head is None else int(head["ContentLength"])

    def read(self, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        return b"".join(self.stream(digest, offset, length))

    def stream(
        self, digest: Digest, offset: int = 0, length: int | None = None, chunk: int = _CHUNK
    ) -> Iterator[bytes]:
        refuse_negative(offset, length)
        if length == 0:
            # HTTP has no empty ranges.
            byte_range(digest=digest, size=self._require_size(digest), offset=offset, length=0)
            return iter(())
        key = keys.blob_key(digest)
        wanted = None if length is None else offset + length
        try:
            response = self._objects.get(key, offset, wanted)
        except RegistryError as error:
            if error.code != "corrupt" or length is not None:
                raise
            # Nor ranges that start at the end; a later start is an error.
            byte_range(digest=digest, size=self._require_size(digest), offset=offset, length=None)
            return iter(())
        end = offset + int(response["ContentLength"])
        if wanted is not None and end != wanted:
            response["Body"].close()
            raise RegistryError("corrupt", f"{digest} ends at byte {end}; expected bytes up to {wanted}.")
        return primed(self._objects.chunks(response, key, offset, end, chunk))

    def receive(self, *, digest: Digest, size: int) -> Reception:
        return self._receive(
            keys.blob_key(digest), Verifier(digest=digest, size=size), size, partial(self._put_short, digest=digest)
        )

    def put(self, chunks: Iterable[bytes], *, digest: Digest, size: int) -> None:
        feed(self.receive(digest=digest, size=size), chunks)

    def put_unknown(self, chunks: Iterable[Chunk], *, life: str = "") -> tuple[Digest, int]:
        tally = Tally()
        counted = tally.over(kept(chunks))
        head: list[Chunk] = []
        for chunk in counted:
            head.append(chunk)
            if tally.size > self._settings.part_size:
                break
        else:
            data = b"".join(chunk.data if isinstance(chunk, Stored) else chunk for chunk in head)
            self._put_short(data, keys.address(tally.digest, life))
            return keys.address(tally.digest, life), tally.size
        staging = keys.upload_prefix(uuid.uuid4().hex) + "stream"
        etag = self._objects.upload(staging, chain(_drain(head), counted), None)
        try:
            self._check_length(staging, tally.size)
            stored = keys.address(tally.digest, life)
            self._objects.copy(staging, keys.blob_key(stored), size=tally.size, etag=etag)
        finally:
            self._objects.remove(staging)
        return stored, tally.size

    def adopt(self, upload: str, *, digest: Digest, size: int) -> None:
        key = keys.upload_key(upload, digest)
        mark = keys.adopted_key(upload, digest)
        head = self._objects.head(key)
        if head is None:
            if parts := self._parts(upload, digest):
                self._join(parts, digest, size=size)
                self._objects.put(mark, b"")
                self._discard(parts)
                return
            if self._objects.head(mark) is not None and self.size(digest) == size:
                return
            raise RegistryError("not-found", f"Nothing was uploaded for {digest}.")
        etag, found = str(head["ETag"]), int(head["ContentLength"])
        try:
            if found != size:
                raise RegistryError(
                    "size-mismatch", f"{found} bytes were uploaded for {digest}; {size} were announced."
                )
            if size:
                response = self._objects.get(key, 0, size, etag=etag)
                stored = primed(self._objects.chunks(response, key, 0, size, _CHUNK, etag=etag))
            else:
                stored = iter(())
            for _ in checked(stored, digest=digest, size=size):
                pass
        except RegistryError as error:
            if error.code in ("digest-mismatch", "size-mismatch"):
                self._objects.remove(key)
            raise
        self._objects.copy(key, keys.blob_key(digest), size=size, etag=etag)
        self._objects.put(mark, b"")
        self._objects.remove(key)

    def receive_part(self, upload: str, digest: Digest, number: int, *, size: int) -> Reception:
        key = keys.part_key(upload, digest, number)
        verifier = Verifier(digest=None, size=size, what=f"part {number} of {digest}")
        return self._receive(key, verifier, size, partial(self._objects.put, key))

    def parts(self, upload: str, digest: Digest) -> dict[int, int]:
        return {part.number: part.size for part in self._parts(upload, digest)}

    def _receive(self, key: str, verifier: Verifier, size: int, put_short: Callable[[bytes], None]) -> Reception:
        if size <= self._settings.part_size:
            return ShortReception(put_short, verifier)
        return LongReception(partial(self._objects.begin_upload, key, size), verifier)

    def _parts(self, upload: str, digest: Digest) -> list[_Part]:
        found = []
        for item in self._objects.list(keys.upload_key(upload, digest) + keys.PART):
            number = keys.parse_part_key(item["Key"])
            if number is not None:
                found.append(_Part(number, item["Key"], str(item["ETag"]), int(item["Size"])))
        return found

    def _join(self, parts: list[_Part], digest: Digest, *, size: int) -> None:
        def chunks() -> Iterator[bytes]:
            for part in parts:
                response = self._objects.get(part.key, 0, part.size, etag=part.etag)
                yield from self._objects.chunks(response, part.key, 0, part.size, _CHUNK, etag=part.etag)

        try:
            for _ in checked(chunks(), digest=digest, size=size):
                pass
        except RegistryError as error:
            if error.code == "digest-mismatch":
                self._discard(parts)
            raise
        self._objects.join([(part.key, part.etag) for part in parts], keys.blob_key(digest))

    def _discard(self, parts: list[_Part]) -> None:
        for part in parts:
            self._objects.remove(part.key)

    def discard_upload(self, upload: str) -> None:
        for item in self._objects.list(keys.upload_prefix(upload)):
            self._objects.remove(item["Key"])

    def delete(self, digest: Digest) -> None:
        self._objects.remove(keys.blob_key(digest))

    def list(self) -> Iterator[tuple[Digest, int]]:
        for item in self._objects.list(keys.BLOBS):
            digest = keys.parse_blob_key(item["Key"])
            if digest is not None:
                yield digest, int(item["Size"])

    def presign_get(self, digest: Digest, *, filename: str | None, expires_in: int) -> Presigned | None:
        parameters = {"ResponseContentType": _TYPE}
        if filename is not None:
            parameters["ResponseContentDisposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        return self._objects.presign("GET", keys.blob_key(digest), parameters, {}, expires_in)

    def presign_put(self, upload: str, digest: Digest, *, size: int, expires_in: int) -> Presigned | None:
        if size > self._settings.single_copy_limit:
            return None
        return self._presign(keys.upload_key(upload, digest), digest, size=size, expires_in=expires_in)

    def presign_part(
        self, upload: str, digest: Digest, number: int, *, part: Digest, size: int, expires_in: int
    ) -> Presigned | None:
        return self._presign(keys.part_key(upload, digest, number), part, size=size, expires_in=expires_in)

    def presign_plain(
        self, upload: str, digest: Digest, number: int | None, *, size: int, expires_in: int
    ) -> Presigned | None:
        if size > self._settings.single_copy_limit:
            return None
        key = keys.upload_key(upload, digest) if number is None else keys.part_key(upload, digest, number)
        headers = {"content-length": str(size)}
        return self._objects.presign("PUT", key, {"ContentLength": size}, headers, expires_in)

    def _presign(self, key: str, digest: Digest, *, size: int, expires_in: int) -> Presigned:
        sha256 = _base64(digest)
        # Both are signed, so another length or digest needs another signature, and a store that checks the digest
        # refuses other bytes. `adopt` hashes in any case.
        headers = {"content-length": str(size), "x-amz-checksum-sha256": sha256}
        parameters = {"ContentLength": size, "ChecksumSHA256": sha256}
        return self._objects.presign("PUT", key, parameters, headers, expires_in)

    def check(self) -> None:
        self._objects.check()

    def local_path(self, digest: Digest) -> str | None:  # noqa: ARG002
        return None

    def sweep(self, *, older_than: float) -> int:
        """Remove unfinished multipart uploads and old upload sessions, by the store's clock."""
        limit = time.time() - older_than
        removed = 0
        for item in self._objects.list(keys.UPLOADS):
            if item["LastModified"].timestamp() < limit:
                self._objects.remove(item["Key"])
                removed += 1
        return removed + self._objects.abort_uploads(before=limit)

    def _require_size(self, digest: Digest) -> int:
        size = self.size(digest)
        if size is None:
            raise RegistryError("not-found", f"There is no blob {digest}.")
        return size

    def _put_short(self, data: bytes, digest: Digest) -> None:
        parameters = {"ChecksumSHA256": _base64(digest), "ContentType": _TYPE}
        try:
            self._objects.put(keys.blob_key(digest), data, IfNoneMatch="*", **parameters)
        except StoreResponseError as error:
            if error.status == 412 and self._holds(data, digest):
                return
            # 412: the object is damaged, and is replaced. 409: a concurrent write of the same bytes, which may still
            # fail. 501: no support for conditional writes.
            if error.status not in (409, 412, 501):
                raise
            self._objects.put(keys.blob_key(digest), data, **parameters)

    def _holds(self, data: bytes, digest: Digest) -> bool:
        """Return whether the stored blob has these bytes."""
        try:
            return self.read(digest) == data
        except RegistryError as error:
            if error.kind.retryable:
                raise
            return False

    def _check_length(self, key: str, size: int) -> None:
        """Check the length of an assembled object, in case the store ignored the range of a copy."""
        head = self._objects.head(key)
        if head is None or int(head["ContentLength"]) != size:
            raise RegistryError(
                "storage-unavailable",
                f"The S3 store assembled {head and head['ContentLength']} bytes; expected {size}.",
            )


def _base64(digest: Digest) -> str:
    return base64.b64encode(bytes.fromhex(digest.hex)).decode()


def _drain(chunks: list[Chunk]) -> Iterator[Chunk]:
    """Yield each chunk once and drop its reference."""
    chunks.reverse()
    while chunks:
        yield chunks.pop()
