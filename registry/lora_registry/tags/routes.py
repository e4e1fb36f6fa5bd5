"""Routes of tags. HTTP preconditions become a `Precondition`."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router

from lora_contract.errors import RegistryError
from lora_contract.wire.tags import ProtectRequest, RollbackRequest, TagHistory, TagList, TagRequest, TagView
from lora_registry.auth.caller import Caller
from lora_registry.http.answers import reply
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
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.tags import service as tags
from lora_registry.tags.moves import Precondition

R = Request[Any, Any, Any]
REPO = "/{namespace:str}/{name:str}"
TAG = REPO + "/tags/{tag:str}"


@get(REPO + "/tags", summary="List tags")
def list_tags(request: R, caller: Caller, repository: RepositoryPath) -> Response[TagList]:
    return reply(request, tags.list_all(caller, repository))


@get(TAG, summary="Show a tag")
def show_tag(request: R, caller: Caller, repository: RepositoryPath, tag: FromPath[str]) -> Response[TagView]:
    return _tag(request, tags.show(caller, repository, tag))


@put(TAG, summary="Set a tag by compare-and-swap")
def move_tag(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    tag: FromPath[str],
    data: JSONBody[TagRequest],
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response[TagView]:
    expect = _precondition(if_match, if_none_match)
    return _tag(request, tags.move(caller, repository, tag, target=data.target, expect=expect, reason=data.reason))


@delete(TAG, summary="Remove a tag")
def remove_tag(
    caller: Caller,
    repository: RepositoryPath,
    tag: FromPath[str],
    if_match: IfMatch = None,
    reason: Text = None,
) -> None:
    tags.remove(caller, repository, tag, expect=_precondition(if_match, None), reason=reason or "")


@put(TAG + "/protection", summary="Protect a tag, or remove its protection")
def protect_tag(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    tag: FromPath[str],
    data: JSONBody[ProtectRequest],
) -> Response[TagView]:
    return _tag(request, tags.protect(caller, repository, tag, protected=data.protected))


@post(TAG + "/rollback", summary="Roll a tag back to its previous target", status_code=200)
def rollback_tag(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    tag: FromPath[str],
    data: JSONBody[RollbackRequest],
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Response[TagView]:
    expect = _precondition(if_match, None)

    def run() -> tuple[int, TagView]:
        view = tags.rollback(caller, repository, tag, to=data.to, expect=expect, reason=data.reason)
        return 200, view

    # The only tag write that is not idempotent: run twice, it would undo itself.
    return _tag(request, once(caller, idempotency_key, (f"{request.url.path} {if_match}", data), TagView, run)[1])


@get(REPO + "/history", summary="List the moves of tags, newest first")
def show_history(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    tag: Text = None,
    cursor: Text = None,
    limit: Limit = 100,
) -> Response[TagHistory]:
    return reply(request, tags.history(caller, repository, tag=tag, cursor=cursor, limit=limit))


def _tag(request: R, view: TagView) -> Response[TagView]:
    return reply(request, view, etag=f"gen-{view.generation}")


def _precondition(if_match: str | None, if_none_match: str | None) -> Precondition:
    """Parse If-Match: "gen-N" and If-None-Match: *. Raises `invalid-request` for anything else."""
    if if_none_match is not None:
        if if_none_match.strip() != "*" or if_match is not None:
            raise RegistryError("invalid-request", "A tag write accepts either If-None-Match: * or If-Match.")
        return Precondition(absent=True)
    if if_match is None:
        return Precondition()
    text = if_match.strip().strip('"')
    if not (text.startswith("gen-") and text[4:].isascii() and text[4:].isdigit() and len(text) < 15):
        raise RegistryError(
            "invalid-request", f'If-Match is {if_match[:40]!r}; expected the tag\'s ETag, such as "gen-3".'
        )
    return Precondition(generation=int(text[4:]))


router = Router(
    "/repositories",
    tags=["tags"],
    route_handlers=[list_tags, show_tag, move_tag, remove_tag, protect_tag, rollback_tag, show_history],
)
