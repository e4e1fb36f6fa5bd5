"""Route of the caller's own identity."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router

from lora_contract.wire.common import Principal as PrincipalView
from lora_registry.auth.principals import Principal
from lora_registry.http.answers import reply
from lora_registry.http.handlers import get

R = Request[Any, Any, Any]


@get("/whoami", summary="Who the caller is")
def whoami(request: R, principal: Principal) -> Response[PrincipalView]:
    return reply(
        request,
        PrincipalView(
            name=principal.name, role=principal.role, namespace=principal.namespace, anonymous=principal.anonymous
        ),
    )


router = Router("/", tags=["operations"], route_handlers=[whoami])
