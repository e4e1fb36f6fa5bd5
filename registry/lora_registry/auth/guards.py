"""From a request to a principal."""

from __future__ import annotations

from typing import Any

from litestar import Request

from lora_contract.errors import RegistryError
from lora_registry.auth import tokens
from lora_registry.auth.principals import LOCAL, Principal
from lora_registry.context import Context


def principal_of(request: Request[Any, Any, Any], ctx: Context) -> Principal:
    """The caller. Raises `unauthenticated` where the service wants a token and there is none or a wrong one."""
    if ctx.settings.auth == "none":
        return LOCAL
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise RegistryError("unauthenticated", "The request has no token.")
    with ctx.db.read() as session:
        return tokens.verify(session, secret.strip())
