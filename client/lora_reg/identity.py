"""Sign programs in by an identity token: CI jobs get a token of the registry without holding a secret."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_contract.wire.common import API
from lora_contract.wire.identity import ExchangeRequest, IssuedToken, LoginOptions, SignedOut
from lora_reg.config import Settings
from lora_reg.problems import place
from lora_reg.transport import Token, Transport

GITHUB_URL: Final = "ACTIONS_ID_TOKEN_REQUEST_URL"
GITHUB_SECRET: Final = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"
ID_TOKEN: Final = "LORA_REG_ID_TOKEN"
RENEW_SECONDS: Final = 60
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

T = TypeVar("T")


def tokens(settings: Settings) -> Token:
    """The token of a client: one that was set, that of a file, or in a CI job one that is exchanged when needed."""
    if settings.token is None and settings.token_file is None and available():
        return JobTokens(settings.server)
    return settings.bearer


class JobTokens:
    """Tokens of the registry for a CI job, exchanged when one is needed and again before it expires. Thread-safe.

    refusal: why there is none. A request that needs no token is sent without one.
    """

    def __init__(self, server: str, environ: Mapping[str, str] | None = None) -> None:
        self._server = server
        self._environ = dict(os.environ if environ is None else environ)
        self._lock = threading.Lock()
        self._asked = False
        self._token: str | None = None
        self._ends = 0.0
        self.refusal: RegistryError | None = None

    def __call__(self) -> str | None:
        with self._lock:
            if time.time() > self._ends - RENEW_SECONDS if self._token else not self._asked:
                self._renew()
            return self._token

    def _renew(self) -> None:
        """Keep the old token if there is no new one: it may last for the rest of the job."""
        self._asked = True
        try:
            issued = issue(self._server, self._environ)
        except RegistryError as error:
            self.refusal = error
            return
        if issued is not None:
            self._token = issued.token
            self._ends = datetime.fromisoformat(issued.expires_at).timestamp()


def available(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process runs in a CI job that can prove which one it is."""
    environ = os.environ if environ is None else environ
    return bool(environ.get(ID_TOKEN) or (environ.get(GITHUB_URL) and environ.get(GITHUB_SECRET)))


def issue(server: str, environ: Mapping[str, str]) -> IssuedToken | None:
    """Exchange the job's identity token; None if the registry needs no token. Raises RegistryError."""
    transport = Transport(server)
    try:
        options = login_options(transport)
        if options.auth == "none":
            return None
        return exchange(transport, _identity_token(options.audience, environ))
    finally:
        transport.close()


def login_options(transport: Transport) -> LoginOptions:
    """How one signs in to a registry."""
    response = transport.request("GET", transport.url(f"{API}/login-options"))
    return _decode(response.content, LoginOptions, str(response.url))


def exchange(transport: Transport, token: str, *, host: str = "") -> IssuedToken:
    """Exchange an identity token. host: name of this machine, for the audit log."""
    body = msgspec.json.encode(ExchangeRequest(token=token, host=host))
    headers = {"Content-Type": "application/json"}
    response = transport.request("POST", transport.url(f"{API}/token-exchange"), headers=headers, content=body)
    return _decode(response.content, IssuedToken, str(response.url))


def sign_out(server: str, token: str) -> bool:
    """End a token that was issued by a sign-in. Return False if the registry did not issue it, or ended it before.

    Raises RegistryError if the registry does not answer, or cannot end tokens.
    """
    transport = Transport(server, token=token)
    try:
        response = transport.request("DELETE", transport.url(f"{API}/token-exchange"))
        return _decode(response.content, SignedOut, str(response.url)).ended
    except RegistryError as error:
        if error.code == "unauthenticated":
            return False
        raise
    finally:
        transport.close()


def _identity_token(audience: str, environ: Mapping[str, str]) -> str:
    if token := environ.get(ID_TOKEN, "").strip():
        return token
    url, secret = environ.get(GITHUB_URL), environ.get(GITHUB_SECRET)
    if not url or not secret:
        raise RegistryError(
            "usage",
            "This process has no identity token: it is not a CI job that may request one.",
            hint="In GitHub Actions add `permissions: id-token: write`; in GitLab, `id_tokens:` with "
            f"{ID_TOKEN}. docs/identity.md shows both.",
        )
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise RegistryError("usage", f"{GITHUB_URL} is {place(url)}; expected an https URL.")
    transport = Transport(f"{parts.scheme}://{parts.netloc}")
    try:
        full = f"{url}{'&' if parts.query else '?'}audience={quote(audience, safe='')}"
        response = transport.request("GET", full, headers={"Authorization": f"Bearer {secret}"})
        value = decoding.decode(response.content, dict[str, Any]).get("value")
    except msgspec.MsgspecError as error:
        raise RegistryError("unavailable", f"The answer of {place(url)} is not JSON.") from error
    finally:
        transport.close()
    if not isinstance(value, str):
        raise RegistryError("unavailable", f"The answer of {place(url)} has no token.")
    return value


def _decode(body: bytes, kind: type[T], url: str) -> T:
    try:
        return decoding.decode(body, kind)
    except msgspec.MsgspecError as error:
        raise RegistryError(
            "unavailable",
            f"The answer of {place(url)} is not a {kind.__name__}: {error}.",
            hint="Check that the server is a lora-registry and not older than this client.",
        ) from error
