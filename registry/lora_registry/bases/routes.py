"""Routes of what only bases have: aliases and fingerprints."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router

from lora_contract.base import BaseFingerprint
from lora_contract.digest import Digest
from lora_contract.wire.catalog import AliasRequest, RepositoryView
from lora_registry.auth.principals import Principal
from lora_registry.bases import service
from lora_registry.context import Context
from lora_registry.http.answers import matches, reply
from lora_registry.http.handlers import FromPath, JSONBody, get, put

R = Request[Any, Any, Any]
REPO = "/{namespace:str}/{name:str}"


@put(REPO + "/aliases", summary="Add aliases to a base")
def add_aliases(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    data: JSONBody[AliasRequest],
) -> Response[RepositoryView]:
    return reply(request, service.add_aliases(ctx, principal, namespace, name, data.aliases))


@get(REPO + "/versions/{selector:str}/fingerprint", summary="The fingerprint of a base version")
def show_fingerprint(
    request: R,
    ctx: Context,
    principal: Principal,
    namespace: FromPath[str],
    name: FromPath[str],
    selector: FromPath[str],
) -> Response[BaseFingerprint]:
    body = service.fingerprint(ctx, principal, namespace, name, selector)
    headers = {"ETag": f'"{Digest.of(body).hex}"', "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(None, status_code=304, headers=headers)  # type: ignore[arg-type]
    return Response(body, media_type="application/json", headers=headers)  # type: ignore[arg-type]


router = Router("/repositories", tags=["catalog"], route_handlers=[add_aliases, show_fingerprint])
