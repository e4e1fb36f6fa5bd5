"""Multipart uploads in constant memory, and server-side copies.

boto3's transfer manager cannot do this: an upload must be aborted, not completed, if its last byte shows a wrong
digest; and that manager may choose the CRT, which ignores `endpoint_url`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count
from typing import Any, Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.parts import Cutter, Range, part_size_for
from lora_registry.blobs.protocols import Chunk
from lora_registry.blobs.s3_client import StoreResponseError, call
from lora_registry.blobs.s3_settings import MIB

_COPY_PART: Final = 256 * MIB
_SENDERS: Final = ThreadPoolExecutor(max_workers=16, thread_name_prefix="s3-part")
"""Shared by all uploads of the process, which wait most of their time for bytes."""
_CHECKSUMS: Final = ("ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256")


class Upload:
    """One object, sent in parts; it appears with `finish`. Keeps `parallel` + 2 parts in memory.

    Between the calls it holds no thread.

    Args:
        key_of: returns the key of the blob that a range is copied from. If the store refuses to copy the first range,
            that one and all others are sent.
    """

    def __init__(
        self,
        client: Any,
        *,
        bucket: str,
        key: str,
        part_size: int,
        parallel: int,
        key_of: Callable[[Digest], str],
        single_limit: int,
    ) -> None:
        self._client = client
        self._target = {"Bucket": bucket, "Key": key}
        self._key_of = key_of
        self._parallel = parallel
        self._cutter = Cutter(part_size, min(_COPY_PART, single_limit))
        self._numbers = count(1)
        self._sent: list[dict[str, Any]] = []
        self._pending: deque[Future[dict[str, Any]]] = deque()
        self._target["UploadId"] = call(client, "create_multipart_upload", **self._target)["UploadId"]

    def add(self, chunk: Chunk) -> None:
        for part in self._cutter.add(chunk):
            self._send_soon(part)

    def finish(self) -> str:
        """Complete the object and return its ETag."""
        for part in self._cutter.end():
            self._send_soon(part)
        while self._pending:
            self._sent.append(self._pending.popleft().result())
        return _complete(self._client, self._target, sorted(self._sent, key=lambda part: int(part["PartNumber"])))

    def abort(self) -> None:
        # No part may arrive after the abort: the store could keep it forever.
        for future in self._pending:
            future.cancel()
        wait(self._pending)
        _abort(self._client, self._target)

    def _send_soon(self, part: bytes | Range) -> None:
        number = next(self._numbers)
        if len(self._pending) == self._parallel:
            self._sent.append(self._pending.popleft().result())
        if isinstance(part, Range) and part.data is not None:
            self._sent.append(self._try_copy(number, part, part.data))
        else:
            self._pending.append(_SENDERS.submit(self._send, number, part))

    def _send(self, number: int, part: bytes | Range) -> dict[str, Any]:
        if isinstance(part, Range):
            response = call(
                self._client,
                "upload_part_copy",
                **self._target,
                PartNumber=number,
                CopySource={"Bucket": self._target["Bucket"], "Key": self._key_of(part.digest)},
                CopySourceRange=part.header,
            )
            return _part(number, response["CopyPartResult"])
        return _part(number, call(self._client, "upload_part", **self._target, PartNumber=number, Body=part))

    def _try_copy(self, number: int, part: Range, data: bytes) -> dict[str, Any]:
        try:
            done = self._send(number, part)
        except StoreResponseError:
            self._cutter.copies = False
            return self._send(number, data)
        self._cutter.copies = True
        return done


def upload(begun: Upload, chunks: Iterable[Chunk]) -> str:
    """Send a whole stream and return the ETag. Any error, also of `chunks`, aborts and leaves nothing."""
    try:
        for chunk in chunks:
            begun.add(chunk)
        return begun.finish()
    except BaseException:
        begun.abort()
        raise


def copy(
    client: Any, *, bucket: str, source: str, key: str, size: int, etag: str, parallel: int, single_limit: int
) -> None:
    """Copy inside the store if the source still has this ETag; otherwise raise StoreResponseError with status 412."""
    origin = {"CopySource": {"Bucket": bucket, "Key": source}, "CopySourceIfMatch": etag}
    if size <= single_limit:
        call(client, "copy_object", Bucket=bucket, Key=key, **origin)
        return
    step = part_size_for(size, min(_COPY_PART, single_limit))

    spans = [f"bytes={first}-{min(first + step, size) - 1}" for first in range(0, size, step)]
    parts = [{**origin, "CopySourceRange": span} for span in spans]
    _copy_parts(client, bucket=bucket, key=key, parts=parts, parallel=parallel)


def join(client: Any, *, bucket: str, sources: Sequence[tuple[str, str]], key: str, parallel: int) -> None:
    """Join whole objects inside the store, given with their ETags; raises as copy."""
    parts = [{"CopySource": {"Bucket": bucket, "Key": source}, "CopySourceIfMatch": etag} for source, etag in sources]
    _copy_parts(client, bucket=bucket, key=key, parts=parts, parallel=parallel)


def _copy_parts(client: Any, *, bucket: str, key: str, parts: Sequence[dict[str, Any]], parallel: int) -> None:
    def send(number: int, origin: dict[str, Any]) -> dict[str, Any]:
        response = call(client, "upload_part_copy", **target, PartNumber=number, **origin)
        return _part(number, response["CopyPartResult"])

    target = {"Bucket": bucket, "Key": key}
    target["UploadId"] = call(client, "create_multipart_upload", **target)["UploadId"]
    try:
        with ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="s3-copy") as pool:
            sent = list(pool.map(send, range(1, len(parts) + 1), parts))
        _complete(client, target, sent)
    except BaseException:
        _abort(client, target)
        raise


def _part(number: int, response: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a part that completion needs; a store with checksums requires them again."""
    checksums: dict[str, Any] = {name: response[name] for name in _CHECKSUMS if name in response}
    return {"PartNumber": number, "ETag": response["ETag"], **checksums}


def _complete(client: Any, target: dict[str, str], parts: list[dict[str, Any]]) -> str:
    try:
        response = call(client, "complete_multipart_upload", **target, MultipartUpload={"Parts": parts})
    except StoreResponseError as error:
        if error.error != "NoSuchUpload":
            raise
        # A retry: the first request succeeded, but its response was lost.
        response = call(client, "head_object", Bucket=target["Bucket"], Key=target["Key"])
    return str(response["ETag"])


def _abort(client: Any, target: dict[str, str]) -> None:
    # The first error is the one to raise; `sweep` removes leftovers.
    with contextlib.suppress(RegistryError):
        call(client, "abort_multipart_upload", **target)
