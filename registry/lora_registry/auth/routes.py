"""Route of the caller's own identity."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router

from lora_contract.wire.common import Identity
from lora_registry.auth.caller import Caller
from lora_registry.http.answers import reply
from lora_registry.http.handlers import get

R = Request[Any, Any, Any]


@get("/whoami", summary="Show the authenticated caller")
def whoami(request: R, caller: Caller) -> Response[Identity]:
    caller.require_signed_in()
    return reply(request, caller.principal.identity())


router = Router("/", tags=["operations"], route_handlers=[whoami])
