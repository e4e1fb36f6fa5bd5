"""Stream bodies in constant memory: a request's body in batches, and blobs with ranges."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import anyio
import anyio.to_thread
from litestar import Request, Response
from litestar.response import Stream

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError

CHUNK: Final = 256 * 1024
IDLE_SECONDS: Final = 60.0
"""A body of which no byte arrives for so long is given up."""

BATCH: Final = 1024 * 1024
"""A body is handed to a thread in pieces of about this size."""

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")


async def batches(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """Yield the request's body in pieces of at least BATCH bytes, and a shorter last one, perhaps empty.

    Waiting for bytes holds no thread. Raises RegistryError `size-mismatch` if none arrives for IDLE_SECONDS.
    """
    stream = aiter(request.stream())
    while True:
        parts: list[bytes] = []
        length = 0
        while length < BATCH:
            try:
                with anyio.fail_after(IDLE_SECONDS):
                    part = await anext(stream, None)
            except TimeoutError as error:
                raise RegistryError(
                    "size-mismatch", f"The body stopped: no byte arrived for {IDLE_SECONDS:g} seconds."
                ) from error
            if part is None:
                yield b"".join(parts)
                return
            parts.append(part)
            length += len(part)
        yield b"".join(parts)


def send_blob(
    request: Request[Any, Any, Any],
    read: Callable[[int, int], Iterator[bytes]],
    digest: Digest,
    size: int,
    *,
    headers: dict[str, str],
) -> Response[Any]:
    """Send a blob or the requested range of it; for HEAD only headers. Never compressed.

    Raises `range-not-satisfiable`, and what `read` raises. A malformed range is ignored (RFC 9110, 14.2).

    Args:
        read: called with offset and length before the response begins; an error of its iterator cuts the connection.
    """
    start, end = 0, size
    wanted = _RANGE.match(request.headers.get("range", ""))
    if wanted and (wanted[1] or wanted[2]) and _may_range(request, digest):
        if wanted[1]:
            start = int(wanted[1])
            end = min(int(wanted[2]) + 1, size) if wanted[2] else size
        else:
            start = max(0, size - int(wanted[2]))
        if start >= end:
            raise RegistryError(
                "range-not-satisfiable", f"The range begins at byte {start}; the file has {size} bytes."
            )
    partial = (start, end) != (0, size)
    fields = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - start),
        "ETag": f'"{digest.hex}"',
        **headers,
    }
    if wanted and (partial or wanted[1] == "0"):
        fields["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        partial = True
    status = 206 if partial else 200
    if request.method == "HEAD":
        return Response(b"", status_code=status, headers=fields, media_type="application/octet-stream")
    return Stream(
        _chunks(read(start, end - start)),
        status_code=status,
        headers=fields,
        media_type="application/octet-stream",
    )


def redirect_to_store(url: str, *, status: int, headers: dict[str, str]) -> Response[Any]:
    """Redirect to a presigned URL, which is a secret until it expires: the response must not be cached."""
    fields = {**headers, "Location": url, "Cache-Control": "no-store"}
    return Response(b"", status_code=status, headers=fields, media_type="application/octet-stream")


def _may_range(request: Request[Any, Any, Any], digest: Digest) -> bool:
    """Return whether If-Range allows a range: the client must have a part of the same bytes."""
    condition = request.headers.get("if-range")
    return condition is None or condition.strip('"') == digest.hex


async def _chunks(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while data := await anyio.to_thread.run_sync(next, chunks, b""):
        yield data
