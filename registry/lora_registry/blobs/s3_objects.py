"""Objects under a prefix of a bucket, by key; `s3` maps them to blobs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from botocore.exceptions import BotoCoreError, HTTPClientError
from urllib3.exceptions import HTTPError

from lora_contract.errors import RegistryError
from lora_registry.blobs import keys, multipart
from lora_registry.blobs.parts import part_size_for
from lora_registry.blobs.protocols import Chunk, Presigned
from lora_registry.blobs.s3_client import StoreResponseError, call, unreachable
from lora_registry.blobs.s3_settings import S3Settings

_RESUMES: Final = 3


class Objects:
    """Objects of a bucket. Keys exclude `prefix`, which is empty or ends with a slash. Thread-safe.

    Raises RegistryError `storage-unavailable` if the store cannot be reached, StoreResponseError if it refuses.
    """

    def __init__(self, *, bucket: str, prefix: str, client: Any, settings: S3Settings) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._client = client
        self._settings = settings

    def check(self) -> None:
        call(self._client, "head_bucket", Bucket=self._bucket)

    def put(self, key: str, data: bytes, **parameters: Any) -> None:
        self._call("put_object", key, Body=data, **parameters)

    def head(self, key: str) -> dict[str, Any] | None:
        """Return boto's description of an object; None if it does not exist."""
        try:
            head: dict[str, Any] = self._call("head_object", key)
        except StoreResponseError as error:
            if error.status == 404:
                return None
            raise
        return head

    def get(self, key: str, begin: int, end: int | None, *, etag: str | None = None) -> Any:
        """Return boto's response, whose `Body` streams the bytes from `begin` up to `end` (exclusive; None: all).

        Raises RegistryError `not-found`; `corrupt` if the object is shorter; `digest-mismatch` if its ETag differs.
        """
        parameters: dict[str, Any] = {}
        if begin or end is not None:
            parameters["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
        if etag is not None:
            parameters["IfMatch"] = etag
        try:
            return self._call("get_object", key, **parameters)
        except StoreResponseError as error:
            if error.error == "NoSuchKey":
                raise RegistryError("not-found", f"The store has no object {key}.") from None
            if error.status == 412:
                raise _changed(key) from None
            if error.status == 416:
                raise RegistryError("corrupt", f"{key} is too short; the requested range ends at byte {end}.") from None
            raise

    def chunks(
        self, response: Any, key: str, position: int, end: int, chunk: int, *, etag: str | None = None
    ) -> Iterator[bytes]:
        """Yield the body of a response of `get`; resume if the connection breaks, since a blob does not change.

        The first chunk is empty, for `streams.primed`.
        """
        resumes = 0
        while True:
            try:
                with contextlib.closing(response["Body"]) as body:
                    if not resumes:
                        yield b""
                    while position < end and (data := body.read(min(chunk, end - position))):
                        position += len(data)
                        yield data
                if position == end:
                    return
                broken: Exception = EOFError()
            except (BotoCoreError, HTTPClientError, HTTPError, OSError) as error:
                broken = error
            resumes += 1
            if resumes > _RESUMES:
                raise unreachable("get_object", broken) from None
            response = self.get(key, position, end, etag=etag)

    def upload(self, key: str, chunks: Iterable[Chunk], size: int | None) -> str:
        """Upload a stream in parts; return the ETag. size: see `begin_upload`."""
        return multipart.upload(self.begin_upload(key, size), chunks)

    def begin_upload(self, key: str, size: int | None) -> multipart.Upload:
        """Begin an upload in parts. size: total in bytes, to choose the part size; None if unknown."""
        return multipart.Upload(
            self._client,
            bucket=self._bucket,
            key=self._prefix + key,
            part_size=part_size_for(size or 0, self._settings.part_size),
            parallel=self._settings.parallel_parts,
            key_of=lambda digest: self._prefix + keys.blob_key(digest),
            single_limit=self._settings.single_copy_limit,
        )

    def copy(self, source: str, key: str, *, size: int, etag: str) -> None:
        """Copy inside the store. Raises RegistryError `digest-mismatch` if the source no longer has this ETag."""
        try:
            multipart.copy(
                self._client,
                bucket=self._bucket,
                source=self._prefix + source,
                key=self._prefix + key,
                size=size,
                etag=etag,
                parallel=self._settings.parallel_parts,
                single_limit=self._settings.single_copy_limit,
            )
        except StoreResponseError as error:
            if error.status == 412:
                raise _changed(source) from None
            raise

    def join(self, sources: Sequence[tuple[str, str]], key: str) -> None:
        """Join objects, given with their ETags, inside the store. Each but the last has at least 5 MiB, as S3 requires.

        Raises RegistryError `digest-mismatch` if one of them no longer has its ETag.
        """
        try:
            multipart.join(
                self._client,
                bucket=self._bucket,
                sources=[(self._prefix + source, etag) for source, etag in sources],
                key=self._prefix + key,
                parallel=self._settings.parallel_parts,
            )
        except StoreResponseError as error:
            if error.status == 412:
                raise _changed(key) from None
            raise

    def remove(self, key: str) -> None:
        try:
            self._call("delete_object", key)
        except StoreResponseError as error:
            if error.status != 404:
                raise

    def list(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Yield the objects under a prefix in order of keys; `Key` excludes the store's own prefix."""
        parameters = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            response = call(self._client, "list_objects_v2", **parameters)
            for item in response.get("Contents", []):
                yield {**item, "Key": item["Key"].removeprefix(self._prefix)}
            if not response.get("IsTruncated"):
                return
            parameters["ContinuationToken"] = response["NextContinuationToken"]

    def presign(
        self, method: str, key: str, parameters: dict[str, Any], headers: dict[str, str], expires_in: int
    ) -> Presigned:
        """Sign locally, without a request. S3 allows seven days, less with the credentials of a role."""
        if not 1 <= expires_in <= 7 * 24 * 3600:
            raise ValueError(f"a presigned URL is valid for 1 second to 7 days, not {expires_in} s")
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

    def abort_uploads(self, *, before: float) -> int:
        """Abort multipart uploads started before this time, in seconds since the epoch by the store's clock."""
        aborted = 0
        pages = {"Bucket": self._bucket, "Prefix": self._prefix}
        while True:
            response = call(self._client, "list_multipart_uploads", **pages)
            for item in response.get("Uploads", []):
                if item["Initiated"].timestamp() < before:
                    with contextlib.suppress(StoreResponseError):
                        call(
                            self._client,
                            "abort_multipart_upload",
                            Bucket=self._bucket,
                            Key=item["Key"],
                            UploadId=item["UploadId"],
                        )
                        aborted += 1
            if not response.get("IsTruncated"):
                return aborted
            pages |= {"KeyMarker": response["NextKeyMarker"], "UploadIdMarker": response["NextUploadIdMarker"]}

    def _call(self, operation: str, key: str, **parameters: Any) -> Any:
        return call(self._client, operation, Bucket=self._bucket, Key=self._prefix + key, **parameters)


def _changed(key: str) -> RegistryError:
    return RegistryError("digest-mismatch", f"The upload {key} changed while it was checked; send it again.")
