"""The only route of the Hub dialect: parse the path, call the verb's handler, encode like the Hub.

Requests that change something are handled in `writing`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlencode

import anyio.to_thread
import msgspec
from litestar import HttpMethod, Request, Response, Router, route
from litestar.exceptions import HTTPException

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.auth.guards import reader_of
from lora_registry.context import Context
from lora_registry.http.admission import own_url
from lora_registry.http.answers import matches, reply
from lora_registry.http.bodies import redirect_to_store, send_blob
from lora_registry.hub import errors, mapping, revisions, staged, writing
from lora_registry.hub.paths import Call, Verb, parse
from lora_registry.keeping import reading
from lora_registry.repositories import service as repositories
from lora_registry.repositories import versions
from lora_registry.runtime import paging

R = Request[Any, Any, Any]
VerbHandler = Callable[[R, Caller, Call], Response[Any]]

PAGE: Final = 100
MODELS: Final = 1000
MAX_PATHS: Final = 1024 * 1024
"""Bytes of the body of paths-info."""
API_HINT: Final = "The native API is documented at /schema/openapi.json."


class PathsBody(msgspec.Struct):
    """The body of paths-info as sent by JavaScript clients."""

    paths: tuple[str, ...] = ()


@route(
    "/{path:path}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD, HttpMethod.POST, HttpMethod.PUT, HttpMethod.DELETE],
    status_code=200,
    include_in_schema=False,
    request_max_body_size=None,
)
async def serve(request: R, ctx: Context) -> Response[Any]:
    """Handle any request of a Hub client. The raw path is parsed: see `paths`."""
    raw = request.scope["raw_path"].decode("ascii", "replace")
    call = parse(raw.partition("/hf/")[2])
    if call is not None and (call.verb, request.method) in writing.HANDLERS:
        return await writing.serve(request, ctx, call)
    if request.method not in ("GET", "HEAD") and not (call and call.verb == "paths-info" and request.method == "POST"):
        raise errors.not_writable()
    if call is None or call.verb not in HANDLERS:
        raise RegistryError("not-found", "The Hub dialect of this registry has no such path.", hint=API_HINT)
    if call.verb == "paths-info":
        await anyio.to_thread.run_sync(reader_of, request, ctx)  # nobody else has a body read
        call = replace(call, paths=_paths(request, await writing.read_body(request, MAX_PATHS)))
    return await anyio.to_thread.run_sync(_dispatch, request, ctx, call)


def _dispatch(request: R, ctx: Context, call: Call) -> Response[Any]:
    return HANDLERS[call.verb](request, reader_of(request, ctx), call)


def show_model(request: R, caller: Caller, call: Call) -> Response[Any]:
    found = staged.show(caller, call)
    info = mapping.model_info(call.repo, found, blobs=_flag(request, "blobs"))
    return reply(request, info, headers=mapping.warning(found.yanked))


def show_tree(request: R, caller: Caller, call: Call) -> Response[Any]:
    found = staged.show(caller, call)
    entries = mapping.tree(found.files, path=call.path, recursive=_flag(request, "recursive"))
    if entries is None:
        raise errors.entry_not_found(f"v{found.number} has no folder {call.path[:200]!r}.", commit=found.commit)
    return reply(request, entries, headers=mapping.warning(found.yanked))


def show_paths(request: R, caller: Caller, call: Call) -> Response[Any]:
    found = staged.show(caller, call)
    return reply(request, mapping.paths_info(found.files, call.paths), headers=mapping.warning(found.yanked))


def show_refs(request: R, caller: Caller, call: Call) -> Response[Any]:
    branches, tagged = staged.refs(caller, call)
    return reply(request, mapping.refs(branches, tagged, pull_requests=_flag(request, "include_prs")))


def list_commits(request: R, caller: Caller, call: Call) -> Response[Any]:
    """List the versions up to the requested one, newest first."""
    if not staged.has_version(caller, call):
        return reply(request, [])
    repository, number = revisions.locate_version(caller, call)
    cursor = request.query_params.get("cursor") or paging.encode(number + 1)
    page = versions.list_all(caller, repository, cursor=cursor, limit=PAGE)
    return reply(request, [mapping.commit(item) for item in page.items], headers=_next(request, page.next_cursor))


def list_repositories(request: R, caller: Caller, call: Call) -> Response[Any]:
    """List models or datasets, always by name. `search` matches the name, or the whole id if it contains a '/'."""
    if call.kind == "other":
        return reply(request, [])
    search = request.query_params.get("search", "").strip().lower()
    wanted = set(request.query_params.getall("filter", []))
    try:
        page = repositories.list_all(
            caller,
            kind="dataset" if call.kind == "dataset" else None,
            namespace=request.query_params.get("author"),
            pattern=f"*{search}*" if search else None,
            cursor=request.query_params.get("cursor"),
            limit=_limit(request),
        )
    except RegistryError as error:
        if error.code == "invalid-request" and search:
            return reply(request, [])  # no name can contain these characters
        raise
    public = revisions.public_namespaces(caller, page.items)
    bases = revisions.base_names(caller, page.items)
    items = [
        mapping.item(repo, private=repo.namespace not in public, bases=bases.get((repo.namespace, repo.name), []))
        for repo in page.items
        if (repo.kind == "dataset") == (call.kind == "dataset")
    ]
    found = [item for item in items if wanted <= set(item["tags"])]
    return reply(request, found, headers=_next(request, page.next_cursor))


def check_permission(request: R, caller: Caller, call: Call) -> Response[Any]:
    namespace = staged.namespace(caller, call)
    if call.path == "write" and not caller.principal.may("writer", namespace):
        caller.require_signed_in()
        raise RegistryError("forbidden", f"The token may read {call.repo}, but not write to it.")
    return reply(request, {})


def show_caller(request: R, caller: Caller, _call: Call) -> Response[Any]:
    caller.require_signed_in()
    return reply(request, mapping.whoami(caller.principal))


def send_file(request: R, caller: Caller, call: Call) -> Response[Any]:
    """Send a file. HEAD never redirects, since some clients would send their token to the store; GET may."""
    found, yanked = staged.locate(caller, call)
    headers = mapping.file_headers(commit=found.commit, digest=found.digest, size=found.size, yanked=yanked)
    headers |= {"Cache-Control": "no-cache", "X-Lora-Reg-Digest": found.version}
    etag = headers["X-Linked-Etag"]
    if matches(request.headers.get("if-none-match"), etag):
        return Response(b"", status_code=304, headers={**headers, "ETag": etag})
    settings = caller.ctx.settings
    if request.method == "HEAD":
        reading.require_present(caller.ctx, found.content)
    elif settings.presign and reading.is_verified(found.content, within=settings.verified_seconds):
        # Clients of the Hub do not compare digests: bytes that were not read for long go through this process.
        presigned = caller.ctx.blobs.presign_get(found.digest, filename=None, expires_in=settings.presign_seconds)
        if presigned is not None:
            reading.require_present(caller.ctx, found.content)
            return redirect_to_store(
                presigned.url, status=302, headers={**headers, "ETag": etag, "Accept-Ranges": "bytes"}
            )
    read = partial(reading.read, caller.ctx, found.content)
    return send_blob(request, read, found.digest, found.size, headers=headers)


HANDLERS: Final[dict[Verb, VerbHandler]] = {
    "info": show_model,
    "tree": show_tree,
    "paths-info": show_paths,
    "refs": show_refs,
    "commits": list_commits,
    "list": list_repositories,
    "auth-check": check_permission,
    "whoami": show_caller,
    "file": send_file,
}


def _flag(request: R, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("true", "1")


def _limit(request: R) -> int:
    text = request.query_params.get("limit", "")
    return max(1, min(int(text), MODELS)) if re.fullmatch("[0-9]{1,9}", text) else PAGE


def _paths(request: R, body: bytes) -> tuple[str, ...]:
    """Parse the paths from a form (Python clients) or from JSON (JavaScript clients)."""
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            return decoding.decode(body, PathsBody).paths
        return tuple(parse_qs(body.decode(), max_num_fields=10_000).get("paths", []))
    except ValueError as error:
        raise RegistryError("invalid-request", "The body is not a list of paths.") from error


def _next(request: R, cursor: str | None) -> dict[str, str]:
    """Return the Link header of the next page."""
    if cursor is None:
        return {}
    pairs = parse_qsl(request.scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)
    query = [(name, value) for name, value in pairs if name != "cursor"]
    path = request.scope["raw_path"].decode("ascii", "replace")
    return {"Link": f'<{own_url(request)}{path}?{urlencode([*query, ("cursor", cursor)])}>; rel="next"'}


router = Router(
    "/hf",
    route_handlers=[serve],
    exception_handlers={
        RegistryError: errors.registry_error,
        HTTPException: errors.framework_error,
        Exception: errors.any_error,
    },
)
