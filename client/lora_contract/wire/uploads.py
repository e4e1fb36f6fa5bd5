"""Upload sessions."""

from __future__ import annotations

from lora_contract.manifest import Kind
from lora_contract.wire.common import Request, Response, Text


class FileSpec(Request, frozen=True):
    path: Text
    size: int
    digest: Text


class UploadRequest(Request, frozen=True):
    """Open an upload session for these files of a version to be committed to `namespace/name`."""

    namespace: Text
    name: Text
    kind: Kind
    files: list[FileSpec]


class UploadTarget(Response, frozen=True):
    """How to send a blob. state: `present` (nothing to send) or `needed`.

    url/headers/method: a presigned request to the store, followed by `…/complete`; None: PUT the
    bytes to `/api/v1/uploads/{id}/blobs/{digest}`. part_size: send parts of so many bytes instead, the last one
    shorter, and then `…/complete`; None: the blob is sent at once.
    """

    digest: str
    size: int
    state: str
    method: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    part_size: int | None = None


class PartSpec(Request, frozen=True):
    """A part to send. number: from 1. digest: of the part's bytes, which a store may check."""

    number: int
    digest: Text


class PartsRequest(Request, frozen=True):
    parts: list[PartSpec]


class PartTarget(Response, frozen=True):
    """How to send a part. url/headers/method: a presigned request to the store; None: PUT the bytes to
    `/api/v1/uploads/{id}/blobs/{digest}/parts/{number}`."""

    number: int
    size: int
    method: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}


class PartTargets(Response, frozen=True):
    parts: list[PartTarget]


class StoredParts(Response, frozen=True):
    """Parts of a blob that are stored. They need not be sent again."""

    part_size: int
    numbers: list[int]


class UploadSession(Response, frozen=True):
    id: str
    expires_at: str
    blobs: list[UploadTarget]
