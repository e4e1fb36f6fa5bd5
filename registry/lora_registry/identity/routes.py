"""Routes of the exchange of identity tokens, of how people sign in, and of trust rules."""

from __future__ import annotations

from typing import Any, Final

from litestar import Request, Response, Router

from lora_contract.errors import RegistryError
from lora_contract.wire.identity import (
    Audience,
    ExchangeRequest,
    IssuedToken,
    LoginOptions,
    SignedOut,
    TrustList,
    TrustRequest,
    TrustView,
)
from lora_registry.auth.caller import Caller
from lora_registry.auth.guards import count_unknown
from lora_registry.context import Context
from lora_registry.http.answers import reply
from lora_registry.http.handlers import FromPath, JSONBody, delete, get, open_post, post
from lora_registry.identity import exchange, trust

R = Request[Any, Any, Any]

MAX_BODY: Final = 32 * 1024


@open_post("/token-exchange", summary="Exchange an identity token for a token of the registry", max_body=MAX_BODY)
def exchange_token(request: R, ctx: Context, data: JSONBody[ExchangeRequest]) -> Response[IssuedToken]:
    _require_login(ctx)
    try:
        issued = exchange.exchange(ctx, data)
    except RegistryError as error:
        if error.code == "unauthenticated":
            count_unknown(request)
        raise
    return reply(request, issued, status=201, headers={"Cache-Control": "no-store"})


@delete("/token-exchange", summary="Sign out: end the token of the request, if it was issued", status_code=200)
def sign_out(request: R, caller: Caller) -> Response[SignedOut]:
    caller.require_signed_in()
    secret = request.headers.get("authorization", "").partition(" ")[2].strip()
    return reply(request, exchange.sign_out(caller, secret), headers={"Cache-Control": "no-store"})


@get("/token-exchange/audience", summary="Show the audience that identity tokens must have")
def show_audience(request: R, ctx: Context) -> Response[Audience]:
    return reply(request, Audience(audience=ctx.settings.oidc_audience))


@get("/login-options", summary="Show how to sign in")
def login_options(request: R, ctx: Context) -> Response[LoginOptions]:
    config = ctx.settings
    if config.auth == "none":
        return reply(request, LoginOptions(auth="none", audience=config.oidc_audience))
    options = LoginOptions(
        auth=config.auth,
        audience=config.oidc_audience,
        issuer=config.login_issuer,
        client_id=config.login_client_id,
        scopes=config.login_scopes,
    )
    return reply(request, options)


@get("/trust-rules", summary="List trust rules")
def list_rules(request: R, caller: Caller) -> Response[TrustList]:
    return reply(request, trust.list_all(caller))


@post("/trust-rules", summary="Add a trust rule")
def add_rule(request: R, caller: Caller, data: JSONBody[TrustRequest]) -> Response[TrustView]:
    return reply(request, trust.add(caller, data), status=201)


@delete("/trust-rules/{rule:str}", summary="Remove a trust rule")
def remove_rule(caller: Caller, rule: FromPath[str]) -> None:
    trust.remove(caller, rule)


def _require_login(ctx: Context) -> None:
    if ctx.settings.auth == "none":
        raise RegistryError(
            "conflict", "This service needs no token: it has no login.", hint="Send requests without a token."
        )


router = Router(
    "/",
    tags=["identity"],
    route_handlers=[exchange_token, sign_out, show_audience, login_options, list_rules, add_rule, remove_rule],
)
