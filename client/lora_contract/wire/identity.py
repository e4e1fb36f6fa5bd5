"""Trust rules, the exchange of identity tokens, and how people sign in."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from lora_contract.roles import Grant
from lora_contract.wire.common import Request, Response, Text

Kind = Literal["github", "gitlab", "kubernetes", "person", "other"]
"""Whose identity tokens a rule accepts."""


class ExchangeRequest(Request, frozen=True):
    """token: an identity token (a JSON Web Token). host: where a person signs in, for the audit log."""

    token: Annotated[str, msgspec.Meta(min_length=1, max_length=16 * 1024)]
    host: Annotated[str, msgspec.Meta(max_length=128)] = ""


class IssuedToken(Response, frozen=True):
    """A token of the registry. It is shown once. name: under which events and versions name the caller."""

    token: str
    name: str
    grants: list[Grant]
    expires_at: str


class Audience(Response, frozen=True):
    """audience: what CI and clusters request identity tokens for."""

    audience: str


class SignedOut(Response, frozen=True):
    """ended: the token of the request was issued for an identity token, and is refused from now on."""

    name: str
    ended: bool


class LoginOptions(Response, frozen=True):
    """How to sign in. issuer None: people sign in by a token of the registry alone.

    Args:
        auth: `none` (no token is needed) or `token`.
        audience: what CI and clusters request identity tokens for.
        issuer, client_id: the OpenID provider for people, and the client that programs on their machines are there.
        scopes: to request, separated by spaces.
    """

    auth: str
    audience: str
    issuer: str | None = None
    client_id: str | None = None
    scopes: str = "openid"


class IssuerKeys(Request, frozen=True):
    """Where the keys of an issuer are; all None: where its discovery document says.

    Args:
        jwks_url: URL of the key set.
        jwks: the key set itself, as JSON.
        ca: certificates in PEM for the issuer's server.
    """

    jwks_url: Annotated[str, msgspec.Meta(max_length=512)] | None = None
    jwks: Annotated[str, msgspec.Meta(max_length=256 * 1024)] | None = None
    ca: Annotated[str, msgspec.Meta(max_length=256 * 1024)] | None = None


class TrustRequest(Request, frozen=True):
    """A trust rule: identity tokens of `issuer` for `audience` whose claims equal `claims` get `grants`.

    Args:
        issuer: as the tokens have it in `iss`; None: the usual one of the kind.
        audience: None: the registry's, or for people its client id.
        claims: by name; `/` leads into nested objects. In the value of `ref`, `*` stands for any text.
        seconds: longest life of an issued token; None: 15 minutes, or 8 hours for people.
        pull_requests: allow pipelines of pull requests more than reading.
        keys: where the issuer's keys are, for all rules that name it; None: as it was set before.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=48)]
    kind: Kind
    claims: dict[Text, Text]
    grants: Annotated[list[Grant], msgspec.Meta(min_length=1, max_length=100)]
    issuer: Annotated[str, msgspec.Meta(max_length=512)] | None = None
    audience: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None
    seconds: Annotated[int, msgspec.Meta(ge=60, le=24 * 3600)] | None = None
    pull_requests: bool = False
    note: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    keys: IssuerKeys | None = None


class TrustView(Response, frozen=True):
    """A trust rule in force."""

    name: str
    kind: Kind
    issuer: str
    audience: str
    claims: dict[str, str]
    grants: list[Grant]
    seconds: int
    pull_requests: bool
    note: str
    created_by: str
    created_at: str


class TrustList(Response, frozen=True):
    items: list[TrustView]
