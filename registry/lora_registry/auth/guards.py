"""Authenticate a request."""

from __future__ import annotations

from typing import Any, Final

from litestar import Request
from sqlmodel import Session, col, select

from lora_contract.errors import RegistryError
from lora_registry.auth import tokens, trusted
from lora_registry.auth.caller import Caller
from lora_registry.auth.last_use import LastUse
from lora_registry.auth.principals import ANONYMOUS, LOCAL
from lora_registry.auth.rates import OPTION, Rates, RequestClass
from lora_registry.context import Context
from lora_registry.db.tables import Namespace
from lora_registry.oidc.verify import looks_like_jwt

READS: Final = ("GET", "HEAD")


def caller_of(request: Request[Any, Any, Any], ctx: Context) -> Caller:
    """Return the caller, looked up once per request. Raises `unauthenticated` if a token is required and missing, and
    for an invalid one.

    A request that only reads needs no token if a namespace is public: it is anonymous then.
    """
    return _once(request, ctx, request.method in READS)


def reader_of(request: Request[Any, Any, Any], ctx: Context) -> Caller:
    """Return the caller of a request that only reads, whatever its method."""
    return _once(request, ctx, True)


def _once(request: Request[Any, Any, Any], ctx: Context, reads: bool) -> Caller:
    state = request.scope["state"]
    if "caller" not in state:
        state["caller"] = _limited(request, ctx, reads)
    caller: Caller = state["caller"]
    return caller


def _limited(request: Request[Any, Any, Any], ctx: Context, reads: bool) -> Caller:
    """Authenticate, and count the request. Raises `rate-limited`."""
    try:
        caller = _authenticate(request, ctx, reads)
    except RegistryError as error:
        if error.code == "unauthenticated":
            count_unknown(request)
        raise
    if ctx.settings.auth != "none":
        kind: RequestClass = request.route_handler.opt.get(OPTION, "reads" if reads else "writes")
        who = _address(request) if caller.principal.anonymous else f"token {caller.principal.name}"
        _rates(request).take(who, kind)
    return caller


def count_unknown(request: Request[Any, Any, Any]) -> None:
    """Count a request without a valid token by its address. Raises `rate-limited`."""
    _rates(request).take(_address(request), "failures")


def _rates(request: Request[Any, Any, Any]) -> Rates:
    rates: Rates = request.app.state["rates"]
    return rates


def _address(request: Request[Any, Any, Any]) -> str:
    return request.client.host if request.client else ""


def _authenticate(request: Request[Any, Any, Any], ctx: Context, reads: bool) -> Caller:
    if ctx.settings.auth == "none":
        return Caller(ctx, LOCAL)
    header = request.headers.get("authorization")
    scheme, _, secret = (header or "").partition(" ")
    secret = secret.strip()
    if scheme.lower() == "bearer" and looks_like_jwt(secret):
        return Caller(ctx, trusted.bearer(ctx, secret))
    with ctx.db.read() as session:
        if scheme.lower() == "bearer" and secret:
            used = tokens.verify(session, secret)
        elif header is None and reads and _has_public(session):
            return Caller(ctx, ANONYMOUS)
        else:
            raise RegistryError("unauthenticated", "The request has no token.")
    last_use: LastUse = request.app.state["last_use"]
    last_use.note(used)
    return Caller(ctx, used.principal)


def _has_public(session: Session) -> bool:
    found = select(Namespace.name).where(col(Namespace.visibility) == "public").limit(1)
    return session.exec(found).first() is not None
