"""Route of the audit log."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router

from lora_contract.wire.jobs import EventList
from lora_registry.auth.caller import Caller
from lora_registry.events import audit
from lora_registry.http.answers import reply
from lora_registry.http.handlers import Limit, Text, get

R = Request[Any, Any, Any]


@get("/events", summary="List audit events, oldest first")
def list_events(request: R, caller: Caller, after: Text = None, limit: Limit = 100) -> Response[EventList]:
    return reply(request, audit.read(caller, after=after, limit=limit))


router = Router("/", tags=["operations"], route_handlers=[list_events])
