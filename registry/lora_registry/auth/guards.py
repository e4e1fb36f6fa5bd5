"""Authenticate a request."""

from __future__ import annotations

from typing import Any

from litestar import Request

from lora_contract.errors import RegistryError
from lora_registry.auth import tokens
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import LOCAL
from lora_registry.context import Context


def caller_of(request: Request[Any, Any, Any], ctx: Context) -> Caller:
    """Return the caller, looked up once per request. Raises `unauthenticated` if a token is required and missing or
    invalid."""
    state = request.scope["state"]
    if "caller" not in state:
        state["caller"] = _authenticate(request, ctx)
    caller: Caller = state["caller"]
    return caller


def _authenticate(request: Request[Any, Any, Any], ctx: Context) -> Caller:
    if ctx.settings.auth == "none":
        return Caller(ctx, LOCAL)
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise RegistryError("unauthenticated", "The request has no token.")
    with ctx.db.read() as session:
        return Caller(ctx, tokens.verify(session, secret.strip()))
