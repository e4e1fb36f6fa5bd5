"""Sign a person in at an OpenID provider: in a browser on this machine, or on any other device by a code.

The registry verifies the identity token that comes back. Only endpoints of the issuer that the registry names are used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import httpx2

from lora_contract.errors import RegistryError
from lora_contract.wire.identity import LoginOptions
from lora_reg.callback import WAIT_SECONDS, Callback

POLL_SECONDS: Final = 5.0
TIMEOUT: Final = 10.0
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

Tell = Callable[[str], None]


class Provider:
    """An OpenID provider, by its discovery document. Raises RegistryError `unavailable`."""

    def __init__(self, options: LoginOptions, *, sleep: Callable[[float], None] = time.sleep) -> None:
        if not options.issuer or not options.client_id:
            raise RegistryError(
                "unsupported",
                "This registry names no OpenID provider for people.",
                hint="Sign in with a token: `lora-reg login URL` without --oidc.",
            )
        self.issuer, self.client_id, self.scopes = options.issuer, options.client_id, options.scopes
        self._sleep = sleep
        self._http = httpx2.Client(
            timeout=TIMEOUT,
            follow_redirects=False,
            mounts={f"all://{host}": None for host in ("127.0.0.1", "localhost")},
        )
        found = self._json("GET", self.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != self.issuer:
            raise RegistryError(
                "unavailable", f"{self.issuer} calls itself {str(found.get('issuer'))[:200]!r}; expected its own URL."
            )
        self._endpoints = found

    @property
    def has_device_flow(self) -> bool:
        return isinstance(self._endpoints.get("device_authorization_endpoint"), str)

    def by_browser(self, tell: Tell, open_url: Callable[[str], object]) -> str:
        """Open the provider's page, wait for its redirect to a port of this machine, and return the identity token."""
        verifier, state, nonce = (secrets.token_urlsafe(48) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        with Callback(state) as callback:
            query = {
                "response_type": "code",
                "client_id": self.client_id,
                "redirect_uri": callback.url,
                "scope": self.scopes,
                "state": state,
                "nonce": nonce,
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            }
            page = self._endpoint("authorization_endpoint")
            url = f"{page}{'&' if urlsplit(page).query else '?'}{urlencode(query)}"
            tell(f"Open this page to sign in: {url}")
            open_url(url)
            answer = callback.wait()
            if answer.get("iss", self.issuer) != self.issuer:
                raise RegistryError("unauthenticated", "The answer came from another issuer than the one asked.")
            if "code" not in answer:
                raise _refused(answer)
            given = {
                "grant_type": "authorization_code",
                "code": answer["code"],
                "redirect_uri": callback.url,
                "code_verifier": verifier,
            }
            tokens = self._post("token_endpoint", given)
        token = _id_token(tokens)
        if _claims(token).get("nonce") != nonce:
            raise RegistryError("unauthenticated", "The identity token was not made for this sign-in.")
        return token

    def by_device(self, tell: Tell) -> str:
        """Show a code to enter on any device, wait until that was done, and return the identity token."""
        started = self._post("device_authorization_endpoint", {"scope": self.scopes})
        try:
            device_code, user_code, page = started["device_code"], started["user_code"], started["verification_uri"]
            interval = float(started.get("interval", POLL_SECONDS))
            end = time.monotonic() + min(float(started.get("expires_in", WAIT_SECONDS)), 3600.0)
        except (KeyError, TypeError, ValueError) as error:
            raise RegistryError("unavailable", f"{self.issuer} started no device flow.") from error
        tell(f"Open {page} on any device and enter the code {user_code}")
        if isinstance(started.get("verification_uri_complete"), str):
            tell(f"or open {started['verification_uri_complete']}")
        while time.monotonic() < end:
            self._sleep(interval)
            answer = self._post(
                "token_endpoint", {"grant_type": DEVICE_GRANT, "device_code": device_code}, pending=True
            )
            match answer.get("error"):
                case None:
                    return _id_token(answer)
                case "authorization_pending":
                    continue
                case "slow_down":
                    interval += POLL_SECONDS
                case _:
                    raise _refused(answer)
        raise RegistryError("unauthenticated", "The code expired before it was entered.", hint="Sign in again.")

    def close(self) -> None:
        self._http.close()

    def _endpoint(self, name: str) -> str:
        url = self._endpoints.get(name)
        if not isinstance(url, str):
            raise RegistryError("unsupported", f"{self.issuer} has no {name}.")
        return url

    def _post(self, endpoint: str, fields: Mapping[str, str], *, pending: bool = False) -> dict[str, Any]:
        answer = self._json("POST", self._endpoint(endpoint), {"client_id": self.client_id, **fields})
        if "error" in answer and not pending:
            raise _refused(answer)
        return answer

    def _json(self, method: str, url: str, fields: Mapping[str, str] | None = None) -> dict[str, Any]:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise RegistryError("unavailable", f"The OpenID provider has the URL {url[:200]!r}; expected https.")
        try:
            response = self._http.request(method, url, data=dict(fields) if fields else None)
            document = json.loads(response.content)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RegistryError("unavailable", f"{parts.netloc} does not answer: {error}.") from error
        except ValueError as error:
            raise RegistryError(
                "unavailable", f"{parts.netloc} answered {response.status_code} without JSON."
            ) from error
        if not isinstance(document, dict) or (response.status_code >= 400 and "error" not in document):
            raise RegistryError("unavailable", f"{parts.netloc} answered {response.status_code}.")
        return document


def can_open_browser(environ: Mapping[str, str] | None = None) -> bool:
    """Whether a browser on this machine would be seen by the person who typed the command."""
    environ = os.environ if environ is None else environ
    if environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"):
        return False
    return sys.platform in ("darwin", "win32") or bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def host_name() -> str:
    return socket.gethostname()[:100]


def _id_token(answer: Mapping[str, Any]) -> str:
    token = answer.get("id_token")
    if not isinstance(token, str):
        raise RegistryError(
            "unauthenticated",
            "The provider sent no identity token.",
            hint="LORA_REG_LOGIN_SCOPES of the registry must contain `openid`.",
        )
    return token


def _claims(token: str) -> dict[str, Any]:
    """The claims, unverified: the token came from the provider over TLS, and the registry verifies it."""
    try:
        part = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError) as error:
        raise RegistryError("unauthenticated", "The provider sent an identity token that is not a JWT.") from error
    return found if isinstance(found, dict) else {}


def _refused(answer: Mapping[str, Any]) -> RegistryError:
    error = str(answer.get("error", "no code"))[:100]
    text = str(answer.get("error_description") or "")[:300]
    return RegistryError(
        "unauthenticated",
        f"The provider refused the sign-in: {error}{f' ({text})' if text else ''}.",
        hint="Try again.",
    )
