"""What a request must meet before its body is read."""

from __future__ import annotations

import functools
import ipaddress
import logging
from typing import Any, Final
from urllib.parse import urlsplit

import anyio.to_thread
from litestar import Request

from lora_contract.errors import RegistryError
from lora_registry.auth.guards import caller_of, count_unknown
from lora_registry.context import Context
from lora_registry.http.texts import check_json, refuse_nul_in_url

R = Request[Any, Any, Any]

SAFE: Final = ("GET", "HEAD", "OPTIONS")
log = logging.getLogger(__name__)
_OWN_SITE: Final = (None, "same-origin", "none")
_SMALL: Final = 32 * 1024
"""Larger JSON bodies are checked in a thread: one of a mebibyte takes 40 ms."""


async def admit(request: R) -> None:
    """Admit a request without a JSON body. Raises `invalid-request`, `forbidden`."""
    refuse_nul_in_url(request.scope)
    if context(request).settings.auth == "none":
        refuse_foreign(request)


async def admit_json(request: R) -> None:
    """Admit a request with a JSON body, and read it once the caller is known.

    Raises `invalid-request`, `forbidden`, `unauthenticated`, `unsupported-media-type`, `too-large`.
    """
    await admit(request)
    ctx = context(request)
    if ctx.settings.auth != "none":
        await anyio.to_thread.run_sync(caller_of, request, ctx)
    await _read_json(request)


async def admit_open_json(request: R) -> None:
    """Admit a request with a JSON body from anybody: the route limits the body. Raises as `admit_json` does."""
    await admit(request)
    count_unknown(request)
    await _read_json(request)


async def _read_json(request: R) -> None:
    body = await request.body()
    if body:
        require_json(request.headers.get("content-type"))
        if len(body) <= _SMALL:
            check_json(body)
        else:
            await anyio.to_thread.run_sync(check_json, body, limiter=request.app.state["large_bodies"])


def context(request: R) -> Context:
    """The context of the service."""
    found: Context = request.app.state["ctx"]
    return found


def refuse_foreign(request: R) -> None:
    """Refuse what another web page may send to a service without login, whose every caller is an administrator.

    A page can name the service by a host name that resolves to this machine (DNS rebinding), and can send requests
    that change something without being allowed to read the answer. Raises `forbidden`.
    """
    host = request.headers.get("host")
    if host is not None and not is_loopback(host):
        raise RegistryError(
            "forbidden",
            f"A service without login responds to loopback host names only, not to {host[:100]!r}.",
            hint="Use http://127.0.0.1 or http://localhost, or set LORA_REG_AUTH=token.",
        )
    if request.method in SAFE:
        return
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if site not in _OWN_SITE or (origin is not None and origin.partition("://")[2] != host):
        raise RegistryError(
            "forbidden",
            "A page of another origin may not change anything in a service without login.",
            hint="Set LORA_REG_AUTH=token and send a token.",
        )


def own_url(request: R) -> str:
    """The beginning of links to this service: configured, or the host name of the request if nobody else can have it.

    Empty if neither: a link built from any host name could lead a client, with its token, elsewhere. huggingface_hub
    does not resolve a link without a host: it ends the list with an error, not with a part of it.
    """
    configured = context(request).settings.public_url
    if configured is not None:
        return configured
    host = request.headers.get("host", "")
    name, port = request.scope.get("server") or ("", None)
    listening = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    if is_loopback(host) or host == listening:
        return f"{request.url.scheme}://{host}"
    _warn_of_links()
    return ""


@functools.cache
def _warn_of_links() -> None:
    """Once in a process."""
    log.warning(
        "A link to a further page has no host, which Hub clients do not follow: set LORA_REG_PUBLIC_URL to the URL "
        "by which clients reach this service."
    )


def is_loopback(host: str) -> bool:
    """Whether a Host header names this machine by a name that no other machine can have."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def require_json(media_type: str | None) -> None:
    """Raise `unsupported-media-type` unless a body is declared to be JSON: a page of another origin can send other
    types without asking."""
    if (media_type or "").partition(";")[0].strip().lower() != "application/json":
        raise RegistryError(
            "unsupported-media-type",
            f"The body must be application/json; its type is {(media_type or 'missing')[:100]}.",
        )
