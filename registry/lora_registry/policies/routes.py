"""Routes of policies."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router

from lora_contract.wire.gates import PolicyList, PolicyRequest, PolicyView
from lora_registry.auth.caller import Caller
from lora_registry.http.answers import reply
from lora_registry.http.handlers import JSONBody, Text, get, put
from lora_registry.policies import service

R = Request[Any, Any, Any]


@get("/policies", summary="List the policies in force; with a pattern, its history")
def list_policies(request: R, caller: Caller, pattern: Text = None) -> Response[PolicyList]:
    return reply(request, service.list_all(caller, pattern=pattern))


@put("/policies", summary="Set or remove the policy of a pattern of tags")
def put_policy(request: R, caller: Caller, data: JSONBody[PolicyRequest]) -> Response[PolicyView]:
    return reply(request, service.put(caller, data))


router = Router("/", tags=["gates"], route_handlers=[list_policies, put_policy])
