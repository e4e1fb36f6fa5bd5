"""Routes of repositories, versions and lineage."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from litestar import HttpMethod, Request, Response, Router, route
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from lora_contract.digest import Digest
from lora_contract.wire.repositories import (
    DeletionView,
    Lineage,
    RepositoryList,
    RepositoryView,
    RetentionRequest,
    RetentionView,
    VersionList,
    VersionView,
    YankRequest,
)
from lora_registry.auth.caller import Caller
from lora_registry.http.answers import matches, reply
from lora_registry.http.bodies import redirect_to_store, send_blob
from lora_registry.http.handlers import (
    FromPath,
    JSONBody,
    Limit,
    LongText,
    Text,
    delete,
    get,
    put,
)
from lora_registry.http.problems import RESPONSES
from lora_registry.keeping import reading
from lora_registry.repositories import deleting, lineage, provenance, retention, versions
from lora_registry.repositories import service as repositories
from lora_registry.repositories.paths import RepositoryPath, VersionPath

R = Request[Any, Any, Any]
REPO = "/{namespace:str}/{name:str}"
VERSION = REPO + "/versions/{selector:str}"
KeepLast = Annotated[int | None, QueryParameter(ge=1, le=1_000_000)]
FILE_RESPONSES = {
    206: ResponseSpec(bytes, media_type="application/octet-stream", generate_examples=False, description="A range"),
    304: ResponseSpec(None, generate_examples=False, description="Not modified"),
    307: ResponseSpec(None, generate_examples=False, description="Redirect to the store"),
}
"""Additional responses to a request for a file."""


@get("/", summary="List repositories")
def list_repositories(
    request: R,
    caller: Caller,
    kind: Text = None,
    namespace: Text = None,
    q: Text = None,
    alias: Text = None,
    cursor: Text = None,
    limit: Limit = 100,
) -> Response[RepositoryList]:
    return reply(
        request,
        repositories.list_all(
            caller, kind=kind, namespace=namespace, pattern=q, alias=alias, cursor=cursor, limit=limit
        ),
    )


@get(REPO, summary="Show a repository")
def show_repository(request: R, caller: Caller, repository: RepositoryPath) -> Response[RepositoryView]:
    return reply(request, repositories.show(caller, repository))


@delete(REPO, summary="Delete a repository, leaving a tombstone")
def delete_repository(caller: Caller, repository: RepositoryPath) -> None:
    repositories.delete(caller, repository)


@get(REPO + "/versions", summary="List versions, newest first")
def list_versions(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    cursor: Text = None,
    limit: Limit = 100,
) -> Response[VersionList]:
    return reply(request, versions.list_all(caller, repository, cursor=cursor, limit=limit))


@get(VERSION, summary="Show the version of a selector")
def show_version(
    request: R,
    caller: Caller,
    version: VersionPath,
) -> Response[VersionView]:
    view = versions.show(caller, version)
    return reply(request, view, headers={"X-Lora-Reg-Digest": view.digest})


@get(REPO + "/deletion", summary="Show what deleting a repository would free, and when")
def preview_repository_deletion(request: R, caller: Caller, repository: RepositoryPath) -> Response[DeletionView]:
    return reply(request, deleting.preview_repository(caller, repository))


@delete(VERSION, summary="Delete a version, leaving a tombstone; a purge frees its bytes at once")
def delete_version(
    caller: Caller, version: VersionPath, purge: bool = False, derived: bool = False, reason: LongText = None
) -> None:
    deleting.delete(caller, version, purge=purge, derived=derived, reason=reason or "")


@get(VERSION + "/deletion", summary="Show what deleting a version would free, and when")
def preview_version_deletion(request: R, caller: Caller, version: VersionPath) -> Response[DeletionView]:
    return reply(request, deleting.preview(caller, version))


@put(VERSION + "/restoration", summary="Restore a deleted version, named by number or digest, while its bytes are kept")
def restore_version(request: R, caller: Caller, version: VersionPath) -> Response[VersionView]:
    return reply(request, deleting.undelete(caller, version))


@get(VERSION + "/manifest", summary="Show the manifest bytes", media_type="application/vnd.oci.image.manifest.v1+json")
def show_manifest(
    request: R,
    caller: Caller,
    version: VersionPath,
) -> Response[dict[str, Any]]:
    body, digest = versions.manifest(caller, version)
    headers = {"ETag": f'"{digest}"', "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(None, status_code=304, headers=headers)  # type: ignore[arg-type]
    return Response(body, media_type="application/vnd.oci.image.manifest.v1+json", headers=headers)  # type: ignore[arg-type]


@route(
    VERSION + "/files/{path:path}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    sync_to_thread=True,
    media_type="application/octet-stream",
    responses={**RESPONSES, **FILE_RESPONSES},
    summary="Download a file of a version, with Range support or by a redirect to the store",
)
def show_file(
    request: R,
    caller: Caller,
    version: VersionPath,
    path: FromPath[str],
) -> Response[bytes]:
    found = versions.locate(caller, version, path.removeprefix("/"))
    etag = f'"{found.digest.hex}"'
    headers = {"X-Lora-Reg-Digest": found.version, "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(b"", status_code=304, headers={**headers, "ETag": etag})
    if request.method == "HEAD":
        reading.require_present(caller.ctx, found.content)
    elif caller.ctx.settings.presign:
        presigned = caller.ctx.blobs.presign_get(
            found.digest, filename=None, expires_in=caller.ctx.settings.presign_seconds
        )
        if presigned is not None:
            reading.require_present(caller.ctx, found.content)
            return redirect_to_store(presigned.url, status=307, headers={**headers, "ETag": etag})
    read = partial(reading.read, caller.ctx, found.content)
    return send_blob(request, read, found.digest, found.size, headers=headers)


@get(REPO + "/retention", summary="Show the retention rule, and what it, or another one, would delete")
def show_retention(
    request: R, caller: Caller, repository: RepositoryPath, keep_last: KeepLast = None
) -> Response[RetentionView]:
    return reply(request, retention.show(caller, repository, keep_last=keep_last))


@put(REPO + "/retention", summary="Set or remove the retention rule of a repository")
def set_retention(
    request: R, caller: Caller, repository: RepositoryPath, data: JSONBody[RetentionRequest]
) -> Response[RetentionView]:
    return reply(request, retention.set_rule(caller, repository, data.keep_last))


@get(VERSION + "/lineage", summary="Show the ancestors and descendants of a version")
def show_lineage(
    request: R,
    caller: Caller,
    version: VersionPath,
    direction: Annotated[lineage.Direction, QueryParameter()] = "both",
) -> Response[Lineage]:
    return reply(request, lineage.show(caller, version, direction=direction))


@get(
    VERSION + "/provenance",
    summary="Show the provenance of a derived version: an in-toto statement (SLSA v1)",
    media_type="application/vnd.in-toto+json",
)
def show_provenance(
    request: R,
    caller: Caller,
    version: VersionPath,
) -> Response[dict[str, Any]]:
    body = provenance.show(caller, version)
    headers = {"ETag": f'"{Digest.of(body).hex}"', "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(None, status_code=304, headers=headers)  # type: ignore[arg-type]
    return Response(body, media_type="application/vnd.in-toto+json", headers=headers)  # type: ignore[arg-type]


@put(VERSION + "/yank", summary="Mark a version as not to be used (yank)")
def yank_version(
    request: R,
    caller: Caller,
    version: VersionPath,
    data: JSONBody[YankRequest],
) -> Response[VersionView]:
    return reply(request, versions.yank(caller, version, data.reason))


@delete(VERSION + "/yank", summary="Undo a yank", status_code=200)
def unyank_version(
    request: R,
    caller: Caller,
    version: VersionPath,
) -> Response[VersionView]:
    return reply(request, versions.yank(caller, version, None))


router = Router(
    "/repositories",
    tags=["catalog"],
    route_handlers=[
        list_repositories,
        show_repository,
        delete_repository,
        list_versions,
        show_version,
        delete_version,
        preview_version_deletion,
        preview_repository_deletion,
        restore_version,
        show_retention,
        set_retention,
        show_manifest,
        show_file,
        show_lineage,
        show_provenance,
        yank_version,
        unyank_version,
    ],
)
