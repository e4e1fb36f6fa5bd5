"""Routes of uploads and commits."""

from __future__ import annotations

from typing import Any, Final

import anyio
import anyio.to_thread
from litestar import Request, Response, Router
from litestar import put as async_put
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from lora_contract.digest import Digest
from lora_contract.wire.repositories import CommitRequest, CommitResult
from lora_contract.wire.uploads import UploadRequest, UploadSession
from lora_registry.auth.caller import Caller
from lora_registry.http.answers import reply
from lora_registry.http.bodies import BATCH, batches
from lora_registry.http.handlers import FromPath, IdempotencyKey, JSONBody, delete, get, post
from lora_registry.http.idempotency import once
from lora_registry.http.problems import RESPONSES
from lora_registry.push import commit, sessions
from lora_registry.repositories.paths import RepositoryPath

R = Request[Any, Any, Any]

_WRITERS: Final = anyio.CapacityLimiter(16)
"""Threads that hash and store what uploads have received, apart from those that serve reads."""


class RawBody(Operation):
    """An operation with a binary body."""

    def __post_init__(self) -> None:
        schema = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
        self.request_body = RequestBody(
            content={"application/octet-stream": OpenAPIMediaType(schema=schema)}, required=True
        )


@post("/uploads", summary="Open an upload session")
def open_session(
    request: R,
    caller: Caller,
    data: JSONBody[UploadRequest],
) -> Response[UploadSession]:
    return reply(request, sessions.open_session(caller, data), status=201)


@get("/uploads/{upload_id:str}", summary="Show which blobs a session still needs")
def show_session(request: R, caller: Caller, upload_id: FromPath[str]) -> Response[UploadSession]:
    return reply(request, sessions.show(caller, upload_id))


@delete("/uploads/{upload_id:str}", summary="Abandon an upload session")
def abandon_session(caller: Caller, upload_id: FromPath[str]) -> None:
    sessions.abandon(caller, upload_id)


@async_put(
    "/uploads/{upload_id:str}/blobs/{digest:str}",
    summary="Send a blob's bytes",
    status_code=204,
    responses=RESPONSES,
    operation_class=RawBody,
    request_max_body_size=None,
)
async def receive_blob(request: R, caller: Caller, upload_id: FromPath[str], digest: FromPath[str]) -> None:
    reception = sessions.Reception(caller, upload_id, Digest.parse(digest))
    try:
        async for data in batches(request):
            store = reception.write if len(data) >= BATCH else reception.finish
            await anyio.to_thread.run_sync(store, data, limiter=_WRITERS)
    finally:
        if reception.begun:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(reception.close, limiter=_WRITERS)


@post(
    "/uploads/{upload_id:str}/blobs/{digest:str}/complete",
    summary="Accept the blob that a presigned PUT stored",
    status_code=204,
)
def complete_blob(caller: Caller, upload_id: FromPath[str], digest: FromPath[str]) -> None:
    sessions.complete(caller, upload_id, Digest.parse(digest))


@post("/repositories/{namespace:str}/{name:str}/versions", summary="Commit an upload as a version")
def commit_version(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    data: JSONBody[CommitRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[CommitResult]:
    def run() -> tuple[int, CommitResult]:
        result = commit.commit(caller, repository, data)
        return (201 if result.created else 200), result

    status, result = once(caller, idempotency_key, (request.url.path, data), CommitResult, run)
    return reply(request, result, status=status)


router = Router(
    "/",
    tags=["push"],
    route_handlers=[open_session, show_session, abandon_session, receive_blob, complete_blob, commit_version],
)
