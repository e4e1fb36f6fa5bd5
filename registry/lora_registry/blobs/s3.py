"""Blobs in a bucket.

What is written under a blob's key has been hashed before: short blobs in memory, long ones while their parts travel
(an upload in parts becomes visible only when it is completed), uploads by clients before they are copied. Conditional
puts spare a rewrite where the store has them; nothing depends on them, because equal keys mean equal bytes.
"""

from __future__ import annotations

import base64
import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final
from urllib.parse import quote, urlsplit

from botocore.exceptions import BotoCoreError, HTTPClientError
from urllib3.exceptions import HTTPError

from lora_reg.spec.digest import Digest
from lora_reg.spec.errors import RegistryError
from lora_registry.blobs import keys, multipart
from lora_registry.blobs.hashing import Tally, checked
from lora_registry.blobs.protocols import Chunk, Presigned, Stored
from lora_registry.blobs.s3_client import StoreAnswered, call, make_client, unreachable
from lora_registry.blobs.s3_settings import S3Settings
from lora_registry.blobs.streams import begun, refuse_negative, span

_PIECE: Final = 256 * 1024
_RESUMES: Final = 3
_TYPE: Final = "application/octet-stream"


def connect(url: str, settings: S3Settings) -> S3Store:
    """The store at `s3://bucket[/prefix]`. Sends nothing yet. Raises RegistryError `usage` on another form of URL."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or {"@", ":"} & set(parts.netloc) or parts.query or parts.fragment:
        raise RegistryError("usage", "A storage URL is s3://bucket or s3://bucket/prefix; credentials do not go there.")
    return S3Store(bucket=parts.netloc, prefix=parts.path.strip("/"), client=make_client(settings), settings=settings)


class S3Store:
    """A BlobStore in `bucket` under `prefix` (may be empty), through a boto3 `client`. Safe for many threads."""

    def __init__(self, *, bucket: str, prefix: str, client: Any, settings: S3Settings) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = client
        self._settings = settings

    def size(self, digest: Digest) -> int | None:
        head = self._head(keys.blob_key(digest))
        return None if head is None else int(head["ContentLength"])

    def read(self, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        return b"".join(self.stream(digest, offset, length))

    def stream(
        self, digest: Digest, offset: int = 0, length: int | None = None, chunk: int = _PIECE
    ) -> Iterator[bytes]:
        refuse_negative(offset, length)
        if length == 0:
            # An empty range has no form in HTTP.
            span(digest=digest, size=self._must_have(digest), offset=offset, length=0)
            return iter(())
        key = keys.blob_key(digest)
        wanted = None if length is None else offset + length
        try:
            answer = self._get(key, offset, wanted)
        except RegistryError as error:
            if error.code != "corrupt" or length is not None:
                raise
            # Nor has the range from the very end on; any later one is an error.
            span(digest=digest, size=self._must_have(digest), offset=offset, length=None)
            return iter(())
        end = offset + int(answer["ContentLength"])
        if wanted is not None and end != wanted:
            answer["Body"].close()
            raise RegistryError("corrupt", f"{digest} ends at byte {end}, bytes to {wanted} were asked for.")
        return begun(self._pieces(answer, key, offset, end, chunk))

    def put(self, chunks: Iterable[bytes], *, digest: Digest, size: int) -> None:
        verified = checked(chunks, digest=digest, size=size)
        if size <= self._settings.part_size:
            self._put_short(b"".join(verified), digest)
        else:
            self._upload(keys.blob_key(digest), verified, size)

    def put_unknown(self, chunks: Iterable[Chunk]) -> tuple[Digest, int]:
        tally = Tally()
        counted = tally.over(chunks)
        head: list[Chunk] = []
        for chunk in counted:
            head.append(chunk)
            if tally.size > self._settings.part_size:
                break
        else:
            data = b"".join(chunk.data if isinstance(chunk, Stored) else chunk for chunk in head)
            self._put_short(data, tally.digest)
            return tally.digest, tally.size
        staging = keys.upload_prefix(uuid.uuid4().hex) + "stream"
        etag = self._upload(staging, chain(_handed_over(head), counted), None)
        try:
            self._check_length(staging, tally.size)
            self._copy(staging, tally.digest, size=tally.size, etag=etag)
        finally:
            self._remove(staging)
        return tally.digest, tally.size

    def adopt(self, upload: str, *, digest: Digest, size: int) -> None:
        key = keys.upload_key(upload, digest)
        mark = keys.adopted_key(upload, digest)
        head = self._head(key)
        if head is None:
            if self._head(mark) is not None and self.size(digest) == size:
                return
            raise RegistryError("not-found", f"Nothing was uploaded for {digest}.")
        etag, found = str(head["ETag"]), int(head["ContentLength"])
        try:
            if found != size:
                raise RegistryError(
                    "size-mismatch", f"{found} bytes were uploaded for {digest}, {size} were announced."
                )
            if size:
                stored = begun(self._pieces(self._get(key, 0, size, etag=etag), key, 0, size, _PIECE, etag=etag))
            else:
                stored = iter(())
            for _ in checked(stored, digest=digest, size=size):
                pass
        except RegistryError as error:
            if error.code in ("digest-mismatch", "size-mismatch"):
                self._remove(key)
            raise
        self._copy(key, digest, size=size, etag=etag)
        self._call("put_object", mark, Body=b"")
        self._remove(key)

    def discard_upload(self, upload: str) -> None:
        for item in self._list(keys.upload_prefix(upload)):
            self._remove(item["Key"])

    def delete(self, digest: Digest) -> None:
        self._remove(keys.blob_key(digest))

    def list(self) -> Iterator[tuple[Digest, int]]:
        for item in self._list(keys.BLOBS):
            digest = keys.parse_blob_key(item["Key"])
            if digest is not None:
                yield digest, int(item["Size"])

    def presign_get(self, digest: Digest, *, filename: str | None, expires_in: int) -> Presigned | None:
        parameters = {"ResponseContentType": _TYPE}
        if filename is not None:
            parameters["ResponseContentDisposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        return self._presign("GET", keys.blob_key(digest), parameters, {}, expires_in)

    def presign_put(self, upload: str, digest: Digest, *, size: int, expires_in: int) -> Presigned | None:
        if size > self._settings.single_copy_limit:
            return None
        sha256 = _base64(digest)
        # Both are signed, so another length or another digest needs another signature; and a store that checks
        # the digest refuses other bytes at the door. `adopt` hashes in any case.
        headers = {"content-length": str(size), "x-amz-checksum-sha256": sha256}
        parameters = {"ContentLength": size, "ChecksumSHA256": sha256}
        return self._presign("PUT", keys.upload_key(upload, digest), parameters, headers, expires_in)

    def check(self) -> None:
        call(self._client, "head_bucket", Bucket=self._bucket)

    def local_path(self, digest: Digest) -> str | None:  # noqa: ARG002
        return None

    def sweep(self, *, older_than: float) -> int:
        """Uploads in parts that were never ended, and upload sessions, both by the store's clock."""
        limit = time.time() - older_than
        removed = 0
        for item in self._list(keys.UPLOADS):
            if item["LastModified"].timestamp() < limit:
                self._remove(item["Key"])
                removed += 1
        pages = {"Bucket": self._bucket, "Prefix": self._prefix}
        while True:
            answer = call(self._client, "list_multipart_uploads", **pages)
            for item in answer.get("Uploads", []):
                if item["Initiated"].timestamp() < limit:
                    with contextlib.suppress(StoreAnswered):
                        call(
                            self._client,
                            "abort_multipart_upload",
                            Bucket=self._bucket,
                            Key=item["Key"],
                            UploadId=item["UploadId"],
                        )
                        removed += 1
            if not answer.get("IsTruncated"):
                return removed
            pages |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def _call(self, operation: str, key: str, **parameters: Any) -> Any:
        return call(self._client, operation, Bucket=self._bucket, Key=self._prefix + key, **parameters)

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            head: dict[str, Any] = self._call("head_object", key)
        except StoreAnswered as error:
            if error.status == 404:
                return None
            raise
        return head

    def _must_have(self, digest: Digest) -> int:
        size = self.size(digest)
        if size is None:
            raise RegistryError("not-found", f"There is no blob {digest}.")
        return size

    def _get(self, key: str, begin: int, end: int | None, *, etag: str | None = None) -> Any:
        parameters: dict[str, Any] = {}
        if begin or end is not None:
            parameters["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        if etag is not None:
            parameters["IfMatch"] = etag
        try:
            return self._call("get_object", key, **parameters)
        except StoreAnswered as error:
            if error.error == "NoSuchKey":
                raise RegistryError("not-found", f"There is no {key} in the store.") from None
            if error.status == 412:
                raise _changed_meanwhile(key) from None
            if error.status == 416:
                raise RegistryError("corrupt", f"{key} is shorter than byte {end} that was asked for.") from None
            raise

    def _pieces(
        self, answer: Any, key: str, position: int, end: int, chunk: int, *, etag: str | None = None
    ) -> Iterator[bytes]:
        """The body, taken up again where the connection breaks: a blob does not change between two requests."""
        resumes = 0
        while True:
            try:
                with contextlib.closing(answer["Body"]) as body:
                    if not resumes:
                        yield b""
                    while position < end and (piece := body.read(min(chunk, end - position))):
                        position += len(piece)
                        yield piece
                if position == end:
                    return
                broken: Exception = EOFError()
            except (BotoCoreError, HTTPClientError, HTTPError, OSError) as error:
                broken = error
            resumes += 1
            if resumes > _RESUMES:
                raise unreachable("get_object", broken) from None
            answer = self._get(key, position, end, etag=etag)

    def _put_short(self, data: bytes, digest: Digest) -> None:
        parameters = {"Body": data, "ChecksumSHA256": _base64(digest), "ContentType": _TYPE}
        try:
            self._call("put_object", keys.blob_key(digest), IfNoneMatch="*", **parameters)
        except StoreAnswered as error:
            if error.status == 412:
                return
            # 409: somebody is writing the same bytes now and may yet fail. 501: a store without conditions.
            if error.status not in (409, 501):
                raise
            self._call("put_object", keys.blob_key(digest), **parameters)

    def _upload(self, key: str, chunks: Iterable[Chunk], size: int | None) -> str:
        return multipart.upload(
            self._client,
            bucket=self._bucket,
            key=self._prefix + key,
            chunks=chunks,
            part_size=multipart.part_size_for(size or 0, self._settings.part_size),
            parallel=self._settings.parallel_parts,
            key_of=lambda digest: self._prefix + keys.blob_key(digest),
            single_limit=self._settings.single_copy_limit,
        )

    def _check_length(self, key: str, size: int) -> None:
        """A store that took a range for the whole object must not give a blob a wrong content."""
        head = self._head(key)
        if head is None or int(head["ContentLength"]) != size:
            raise RegistryError(
                "storage-unavailable",
                f"The S3 store put {head and head['ContentLength']} bytes together where {size} were given to it.",
            )

    def _copy(self, source: str, digest: Digest, *, size: int, etag: str) -> None:
        try:
            multipart.copy(
                self._client,
                bucket=self._bucket,
                source=self._prefix + source,
                key=self._prefix + keys.blob_key(digest),
                size=size,
                etag=etag,
                parallel=self._settings.parallel_parts,
                single_limit=self._settings.single_copy_limit,
            )
        except StoreAnswered as error:
            if error.status == 412:
                raise _changed_meanwhile(source) from None
            raise

    def _remove(self, key: str) -> None:
        try:
            self._call("delete_object", key)
        except StoreAnswered as error:
            if error.status != 404:
                raise

    def _list(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Every object under it, in order of the keys; `Key` is without the store's own prefix."""
        parameters = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            answer = call(self._client, "list_objects_v2", **parameters)
            for item in answer.get("Contents", []):
                yield {**item, "Key": item["Key"].removeprefix(self._prefix)}
            if not answer.get("IsTruncated"):
                return
            parameters["ContinuationToken"] = answer["NextContinuationToken"]

    def _presign(
        self, method: str, key: str, parameters: dict[str, Any], headers: dict[str, str], expires_in: int
    ) -> Presigned:
        """Computed here, without a request. Seven days is what S3 allows, less with credentials of a role."""
        if not 1 <= expires_in <= 7 * 24 * 3600:
            raise ValueError(f"a presigned URL lives 1 second to 7 days, not {expires_in} s")
        try:
            url = self._client.generate_presigned_url(
                f"{method.lower()}_object",
                Params={"Bucket": self._bucket, "Key": self._prefix + key, **parameters},
                ExpiresIn=expires_in,
                HttpMethod=method,
            )
        except BotoCoreError as error:
            raise unreachable("presigning", error) from None
        return Presigned(method=method, url=url, headers=headers, expires_in=expires_in)


def _base64(digest: Digest) -> str:
    return base64.b64encode(bytes.fromhex(digest.hex)).decode()


def _changed_meanwhile(key: str) -> RegistryError:
    return RegistryError("digest-mismatch", f"What was uploaded as {key} changed while it was checked; send it again.")


def _handed_over(chunks: list[Chunk]) -> Iterator[Chunk]:
    """Each chunk once, without keeping it."""
    chunks.reverse()
    while chunks:
        yield chunks.pop()
