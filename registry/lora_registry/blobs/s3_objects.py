"""Objects under a prefix of a bucket, by their keys, which `s3` turns into blobs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from botocore.exceptions import BotoCoreError, HTTPClientError
from urllib3.exceptions import HTTPError

from lora_contract.errors import RegistryError
from lora_registry.blobs import keys, multipart
from lora_registry.blobs.protocols import Chunk, Presigned
from lora_registry.blobs.s3_client import StoreAnswered, call, unreachable
from lora_registry.blobs.s3_settings import S3Settings

_RESUMES: Final = 3


class Objects:
    """Keys are without `prefix`, which is empty or ends with a slash. Safe for many threads.

    Raises RegistryError `storage-unavailable` if the store cannot be reached, StoreAnswered if it refuses.
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
        """boto's description of an object; None if there is no such object."""
        try:
            head: dict[str, Any] = self._call("head_object", key)
        except StoreAnswered as error:
            if error.status == 404:
                return None
            raise
        return head

    def get(self, key: str, begin: int, end: int | None, *, etag: str | None = None) -> Any:
        """boto's answer, whose `Body` is a stream of the bytes from `begin` to before `end`, None for the last.

        Raises RegistryError `not-found`; `corrupt` if it is shorter; `digest-mismatch` if it has another ETag.
        """
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

    def pieces(
        self, answer: Any, key: str, position: int, end: int, chunk: int, *, etag: str | None = None
    ) -> Iterator[bytes]:
        """The body of an answer of `get`, resumed if the connection breaks, since a blob does not change.

        The first piece is empty, for `streams.begun`.
        """
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
            answer = self.get(key, position, end, etag=etag)

    def upload(self, key: str, chunks: Iterable[Chunk], size: int | None) -> str:
        """Upload in parts, of a size that fits `size` bytes if known. Returns the ETag."""
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
        except StoreAnswered as error:
            if error.status == 412:
                raise _changed_meanwhile(source) from None
            raise

    def remove(self, key: str) -> None:
        try:
            self._call("delete_object", key)
        except StoreAnswered as error:
            if error.status != 404:
                raise

    def list(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Every object under a prefix, in order of the keys; `Key` is without the store's own prefix."""
        parameters = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            answer = call(self._client, "list_objects_v2", **parameters)
            for item in answer.get("Contents", []):
                yield {**item, "Key": item["Key"].removeprefix(self._prefix)}
            if not answer.get("IsTruncated"):
                return
            parameters["ContinuationToken"] = answer["NextContinuationToken"]

    def presign(
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

    def abort_uploads(self, *, before: float) -> int:
        """Abort the multipart uploads that began before this moment, in seconds since 1970 by the store's clock."""
        aborted = 0
        pages = {"Bucket": self._bucket, "Prefix": self._prefix}
        while True:
            answer = call(self._client, "list_multipart_uploads", **pages)
            for item in answer.get("Uploads", []):
                if item["Initiated"].timestamp() < before:
                    with contextlib.suppress(StoreAnswered):
                        call(
                            self._client,
                            "abort_multipart_upload",
                            Bucket=self._bucket,
                            Key=item["Key"],
                            UploadId=item["UploadId"],
                        )
                        aborted += 1
            if not answer.get("IsTruncated"):
                return aborted
            pages |= {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def _call(self, operation: str, key: str, **parameters: Any) -> Any:
        return call(self._client, operation, Bucket=self._bucket, Key=self._prefix + key, **parameters)


def _changed_meanwhile(key: str) -> RegistryError:
    return RegistryError("digest-mismatch", f"What was uploaded as {key} changed while it was checked; send it again.")
