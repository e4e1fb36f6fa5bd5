"""Routes of namespaces and tokens."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router

from lora_contract.wire.access import (
    GrantsRequest,
    NamespaceList,
    NamespaceView,
    QuotaRequest,
    TokenList,
    TokenView,
    VisibilityRequest,
)
from lora_registry.access import service
from lora_registry.auth.caller import Caller
from lora_registry.http.answers import reply
from lora_registry.http.handlers import FromPath, JSONBody, Limit, Text, delete, get, put

R = Request[Any, Any, Any]


@get("/namespaces", summary="List namespaces")
def list_namespaces(request: R, caller: Caller, cursor: Text = None, limit: Limit = 100) -> Response[NamespaceList]:
    return reply(request, service.list_namespaces(caller, cursor=cursor, limit=limit))


@get("/namespaces/{namespace:str}", summary="Show a namespace")
def show_namespace(request: R, caller: Caller, namespace: FromPath[str]) -> Response[NamespaceView]:
    return reply(request, service.show_namespace(caller, namespace))


@put("/namespaces/{namespace:str}", summary="Set who may read a namespace")
def set_visibility(
    request: R, caller: Caller, namespace: FromPath[str], data: JSONBody[VisibilityRequest]
) -> Response[NamespaceView]:
    return reply(request, service.set_visibility(caller, namespace, data.visibility))


@put(
    "/namespaces/{namespace:str}/quota",
    summary="Set the quota of a namespace",
)
def set_quota(
    request: R, caller: Caller, namespace: FromPath[str], data: JSONBody[QuotaRequest]
) -> Response[NamespaceView]:
    return reply(request, service.set_quota(caller, namespace, data))


@get("/tokens", summary="List the tokens of namespaces that the caller administers")
def list_tokens(request: R, caller: Caller, cursor: Text = None, limit: Limit = 100) -> Response[TokenList]:
    return reply(request, service.list_tokens(caller, cursor=cursor, limit=limit))


@put("/tokens/{token:path}", summary="Change the grants of a token in the namespaces that the caller administers")
def change_grants(
    request: R, caller: Caller, token: FromPath[str], data: JSONBody[GrantsRequest]
) -> Response[TokenView]:
    return reply(request, service.change_grants(caller, token.removeprefix("/"), data))


@delete("/tokens/{token:path}", summary="Revoke a token in the namespaces that the caller administers")
def revoke_token(caller: Caller, token: FromPath[str]) -> None:
    service.revoke_token(caller, token.removeprefix("/"))


router = Router(
    "/",
    tags=["access"],
    route_handlers=[
        list_namespaces,
        show_namespace,
        set_visibility,
        set_quota,
        list_tokens,
        change_grants,
        revoke_token,
    ],
)
