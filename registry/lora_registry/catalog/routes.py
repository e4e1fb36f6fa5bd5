"""Routes of repositories, versions, tags and lineage: decode, call one verb, encode."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import HttpMethod, Request, Response, Router, route
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from lora_reg.spec.base import BaseFingerprint
from lora_reg.spec.digest import Digest
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.wire import (
    AliasRequest,
    Lineage,
    ProtectRequest,
    RepositoryList,
    RepositoryView,
    RollbackRequest,
    TagHistory,
    TagList,
    TagRequest,
    TagView,
    VersionList,
    VersionView,
    YankRequest,
)
from lora_registry.auth.principals import Principal
from lora_registry.catalog import bases, lineage, repositories, tags, versions
from lora_registry.catalog.tags import Expectation
from lora_registry.context import Context
from lora_registry.http.answers import matches, reply
from lora_registry.http.bodies import send_blob, send_elsewhere
from lora_registry.http.handlers import (
    FromPath,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    JSONBody,
    Limit,
    Text,
    delete,
    get,
    post,
    put,
)
from lora_registry.http.idempotency import once
from lora_registry.http.problems import RESPONSES

R = Request[Any, Any, Any]
REPO = "/{namespace:str}/{name:str}"
VERSION = REPO + "/versions/{selector:str}"
TAG = REPO + "/tags/{tag:str}"
ALSO = {
    206: ResponseSpec(bytes, media_type="application/octet-stream", generate_examples=False, description="A range"),
    304: ResponseSpec(None, generate_examples=False, description="As the caller has it"),
    307: ResponseSpec(None, generate_examples=False, description="The store serves it"),
}
"""What else a file may be answered with."""


@get("/", summary="List repositories")
def list_repositories(
    request: R,
    ctx: Context,
    principal: Principal,
    kind: Text = None,
    namespace: Text = None,
    q: Text = None,
    cursor: Text = None,
    limit: Limit = 100,
) -> Response[RepositoryList]:
    return reply(
        request,
        repositories.list_all(ctx, principal, kind=kind, namespace=namespace, pattern=q, cursor=cursor, limit=limit),
    )


@get(REPO, summary="Show a repository")
def show_repository(
    request: R, ctx: Context, principal: Principal, namespace: FromPath[str], name: FromPath[str]
) -> Response[RepositoryView]:
    return reply(request, repositories.show(ctx, principal, namespace, name))


@delete(REPO, summary="Delete a repository, leaving a tombstone")
def delete_repository(ctx: Context, principal: Principal, namespace: FromPath[str], name: FromPath[str]) -> None:
    repositories.delete(ctx, principal, namespace, name)


@put(REPO + "/aliases", summary="Add aliases to a base")
def add_aliases(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    data: JSONBody[AliasRequest],
) -> Response[RepositoryView]:
    return reply(request, bases.add_aliases(ctx, principal, namespace, name, data.aliases))


@get(REPO + "/versions", summary="List versions, newest first")
def list_versions(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    cursor: Text = None,
    limit: Limit = 100,
) -> Response[VersionList]:
    return reply(request, versions.list_all(ctx, principal, namespace, name, cursor=cursor, limit=limit))


@get(VERSION, summary="Show what a selector means")
def show_version(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    selector: FromPath[str],
) -> Response[VersionView]:
    view = versions.show(ctx, principal, namespace, name, selector)
    return reply(request, view, headers={"X-Lora-Reg-Digest": view.digest})


@delete(VERSION, summary="Delete a version, leaving a tombstone")
def delete_version(
    ctx: Context, principal: Principal, namespace: FromPath[str], name: FromPath[str], selector: FromPath[str]
) -> None:
    versions.delete(ctx, principal, namespace, name, selector)


@get(VERSION + "/manifest", summary="The manifest bytes", media_type="application/vnd.oci.image.manifest.v1+json")
def show_manifest(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    selector: FromPath[str],
) -> Response[dict[str, Any]]:
    body, digest = versions.manifest(ctx, principal, namespace, name, selector)
    headers = {"ETag": f'"{digest}"', "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(None, status_code=304, headers=headers)  # type: ignore[arg-type]
    return Response(body, media_type="application/vnd.oci.image.manifest.v1+json", headers=headers)  # type: ignore[arg-type]


@route(
    VERSION + "/files/{path:path}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    sync_to_thread=True,
    media_type="application/octet-stream",
    responses={**RESPONSES, **ALSO},
    summary="A file of a version; Range is served, or the request redirected to the store",
)
def show_file(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    selector: FromPath[str],
    path: FromPath[str],
) -> Response[bytes]:
    found = versions.locate(ctx, principal, namespace, name, selector, path.removeprefix("/"))
    etag = f'"{found.digest.hex}"'
    headers = {"X-Lora-Reg-Digest": found.version, "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(b"", status_code=304, headers={**headers, "ETag": etag})
    if ctx.settings.presign and request.method == "GET":
        presigned = ctx.blobs.presign_get(found.digest, filename=None, expires_in=ctx.settings.presign_seconds)
        if presigned is not None:
            return send_elsewhere(presigned.url, status=307, headers={**headers, "ETag": etag})
    return send_blob(request, ctx.blobs, found.digest, found.size, headers=headers)


@get(VERSION + "/fingerprint", summary="The fingerprint of a base version")
def show_fingerprint(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    selector: FromPath[str],
) -> Response[BaseFingerprint]:
    body = bases.fingerprint(ctx, principal, namespace, name, selector)
    headers = {"ETag": f'"{Digest.of(body).hex}"', "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(None, status_code=304, headers=headers)  # type: ignore[arg-type]
    return Response(body, media_type="application/json", headers=headers)  # type: ignore[arg-type]


@get(VERSION + "/lineage", summary="What a version was made from, and what was made from it")
def show_lineage(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    selector: FromPath[str],
    direction: Annotated[lineage.Direction, QueryParameter()] = "both",
) -> Response[Lineage]:
    return reply(request, lineage.show(ctx, principal, namespace, name, selector, direction=direction))


@put(VERSION + "/yank", summary="Mark a version as not to be used")
def yank_version(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    selector: FromPath[str],
    data: JSONBody[YankRequest],
) -> Response[VersionView]:
    return reply(request, versions.yank(ctx, principal, namespace, name, selector, data.reason))


@delete(VERSION + "/yank", summary="Lift a yank", status_code=200)
def unyank_version(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    selector: FromPath[str],
) -> Response[VersionView]:
    return reply(request, versions.yank(ctx, principal, namespace, name, selector, None))


@get(REPO + "/tags", summary="List tags")
def list_tags(
    request: R, ctx: Context, principal: Principal, namespace: FromPath[str], name: FromPath[str]
) -> Response[TagList]:
    return reply(request, tags.list_all(ctx, principal, namespace, name))


@get(TAG, summary="Show a tag")
def show_tag(
    request: R, ctx: Context, principal: Principal, namespace: FromPath[str], name: FromPath[str], tag: FromPath[str]
) -> Response[TagView]:
    return _tag(request, tags.show(ctx, principal, namespace, name, tag))


@put(TAG, summary="Set a tag by compare-and-swap")
def move_tag(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    tag: FromPath[str],
    data: JSONBody[TagRequest],
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response[TagView]:
    expect = _expectation(if_match, if_none_match)
    return _tag(
        request, tags.move(ctx, principal, namespace, name, tag, target=data.target, expect=expect, reason=data.reason)
    )


@delete(TAG, summary="Remove a tag")
def remove_tag(
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    tag: FromPath[str],
    if_match: IfMatch = None,
    reason: Text = None,
) -> None:
    tags.remove(ctx, principal, namespace, name, tag, expect=_expectation(if_match, None), reason=reason or "")


@put(TAG + "/protection", summary="Protect a tag, or lift it")
def protect_tag(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    tag: FromPath[str],
    data: JSONBody[ProtectRequest],
) -> Response[TagView]:
    return _tag(request, tags.protect(ctx, principal, namespace, name, tag, protected=data.protected))


@post(TAG + "/rollback", summary="Set a tag back to what it pointed to before", status_code=200)
def rollback_tag(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    tag: FromPath[str],
    data: JSONBody[RollbackRequest],
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Response[TagView]:
    expect = _expectation(if_match, None)

    def run() -> tuple[int, TagView]:
        view = tags.rollback(ctx, principal, namespace, name, tag, to=data.to, expect=expect, reason=data.reason)
        return 200, view

    # Done twice it would be undone: the one tag write that is not idempotent in itself.
    return _tag(
        request, once(ctx, principal, idempotency_key, (f"{request.url.path} {if_match}", data), TagView, run)[1]
    )


@get(REPO + "/history", summary="The moves of tags, newest first")
def show_history(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    tag: Text = None,
    cursor: Text = None,
    limit: Limit = 100,
) -> Response[TagHistory]:
    return reply(request, tags.history(ctx, principal, namespace, name, tag=tag, cursor=cursor, limit=limit))


def _tag(request: R, view: TagView) -> Response[TagView]:
    return reply(request, view, etag=f"gen-{view.generation}")


def _expectation(if_match: str | None, if_none_match: str | None) -> Expectation:
    """If-Match: "gen-N" and If-None-Match: * as an expectation. Raises `invalid-request` for anything else."""
    if if_none_match is not None:
        if if_none_match.strip() != "*" or if_match is not None:
            raise RegistryError("invalid-request", "A tag write takes If-None-Match: * alone, or If-Match.")
        return Expectation(absent=True)
    if if_match is None:
        return Expectation()
    text = if_match.strip().strip('"')
    if not (text.startswith("gen-") and text[4:].isascii() and text[4:].isdigit() and len(text) < 15):
        raise RegistryError("invalid-request", f'If-Match is {if_match[:40]!r}; expected the tag\'s ETag, as "gen-3".')
    return Expectation(generation=int(text[4:]))


router = Router(
    "/repositories",
    tags=["catalog"],
    route_handlers=[
        list_repositories,
        show_repository,
        delete_repository,
        add_aliases,
        list_versions,
        show_version,
        delete_version,
        show_manifest,
        show_file,
        show_fingerprint,
        show_lineage,
        yank_version,
        unyank_version,
        list_tags,
        show_tag,
        move_tag,
        remove_tag,
        protect_tag,
        rollback_tag,
        show_history,
    ],
)
