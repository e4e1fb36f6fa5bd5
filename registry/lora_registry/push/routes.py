"""Routes of uploads and commits."""

from __future__ import annotations

from typing import Any, Final

import anyio
import anyio.to_thread
from litestar import Request, Response, Router
from litestar import put as async_put
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from lora_contract.digest import Digest
from lora_contract.wire.repositories import CommitRequest, CommitResult
from lora_contract.wire.uploads import (
    PartsRequest,
    PartTargets,
    StoredParts,
    UploadRequest,
    UploadSession,
)
from lora_registry.auth.caller import Caller
from lora_registry.http.answers import reply
from lora_registry.http.bodies import BATCH, batches
from lora_registry.http.handlers import FromPath, IdempotencyKey, JSONBody, delete, get, post
from lora_registry.http.idempotency import once
from lora_registry.http.problems import RESPONSES
from lora_registry.push import commit, parts, sessions
from lora_registry.push.reception import Reception
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
    await receive_body(request, sessions.receive(caller, upload_id, Digest.parse(digest)))


@get("/uploads/{upload_id:str}/blobs/{digest:str}/parts", summary="Show which parts of a blob are stored")
def stored_parts(request: R, caller: Caller, upload_id: FromPath[str], digest: FromPath[str]) -> Response[StoredParts]:
    return reply(request, parts.stored(caller, upload_id, Digest.parse(digest)))


@post("/uploads/{upload_id:str}/blobs/{digest:str}/parts", summary="Ask how to send parts of a blob", status_code=200)
def part_targets(
    request: R, caller: Caller, upload_id: FromPath[str], digest: FromPath[str], data: JSONBody[PartsRequest]
) -> Response[PartTargets]:
    return reply(request, parts.targets(caller, upload_id, Digest.parse(digest), data))


@async_put(
    "/uploads/{upload_id:str}/blobs/{digest:str}/parts/{number:int}",
    summary="Send a part of a blob",
    status_code=204,
    responses=RESPONSES,
    operation_class=RawBody,
    request_max_body_size=None,
)
async def receive_part(
    request: R, caller: Caller, upload_id: FromPath[str], digest: FromPath[str], number: FromPath[int]
) -> None:
    await receive_body(request, parts.receive(caller, upload_id, Digest.parse(digest), number))


async def receive_body(request: R, reception: Reception) -> None:
    """Hand the body of a request over as it arrives."""
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
    summary="Accept the blob that the store received",
    status_code=204,
    responses={202: ResponseSpec(None, description="The bytes are still being checked; ask again.")},
)
def complete_blob(caller: Caller, upload_id: FromPath[str], digest: FromPath[str]) -> Response[None]:
    done = sessions.complete(caller, upload_id, Digest.parse(digest))
    return Response(None, status_code=204 if done else 202)


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
    route_handlers=[
        open_session,
        show_session,
        abandon_session,
        receive_blob,
        stored_parts,
        part_targets,
        receive_part,
        complete_blob,
        commit_version,
    ],
)
