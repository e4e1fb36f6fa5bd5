"""Upload sessions."""

from __future__ import annotations

from lora_contract.manifest import Kind
from lora_contract.wire.common import Request, Response


class FileSpec(Request, frozen=True):
    path: str
    size: int
    digest: str


class UploadRequest(Request, frozen=True):
    """Open an upload session for these files of a version to be committed to `namespace/name`."""

    namespace: str
    name: str
    kind: Kind
    files: list[FileSpec]


class UploadTarget(Response, frozen=True):
    """How to send a blob. state: `present` (nothing to send) or `needed`.

    url/headers/method: a presigned request to the store, followed by `…/complete`; None: PUT the
    bytes to `/api/v1/uploads/{id}/blobs/{digest}`.
    """

    digest: str
    size: int
    state: str
    method: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}


class UploadSession(Response, frozen=True):
    id: str
    expires_at: str
    blobs: list[UploadTarget]
