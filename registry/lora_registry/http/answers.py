"""JSON responses with an ETag, and 304 if the client already has that version."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response

T = TypeVar("T")


def reply(
    request: Request[Any, Any, Any],
    value: T,
    *,
    status: int = 200,
    etag: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response[T]:
    """Return `value` as JSON. etag: the resource's strong tag, without quotes; None: a weak one, from the bytes."""
    body = msgspec.json.encode(value)
    tag = f'"{etag}"' if etag else f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    fields = {"ETag": tag, "Cache-Control": "no-cache", **(headers or {})}
    if request.method in ("GET", "HEAD") and matches(request.headers.get("if-none-match"), tag):
        return Response(None, status_code=304, headers=fields)  # type: ignore[arg-type]
    return Response(body, status_code=status, media_type="application/json", headers=fields)  # type: ignore[arg-type]


def matches(header: str | None, tag: str) -> bool:
    """Return whether an If-None-Match header matches this tag, by weak comparison (RFC 9110, 8.8.3.2)."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return tag.removeprefix("W/") in {part.strip().removeprefix("W/") for part in header.split(",")}
