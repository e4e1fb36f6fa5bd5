"""GET a JSON object from an issuer: over https, bounded in size and time, without redirects."""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

SECONDS: Final = 5.0
MAX_BYTES: Final = 256 * 1024
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


class FetchError(Exception):
    """The document cannot be had; the text says why, for the log."""


def check_url(url: str, *, what: str) -> str:
    """Return a URL whose documents may be trusted: https, or http on a loopback host. Raises ValueError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if (parts.scheme == "https" and host) or (parts.scheme == "http" and _is_loopback(host)):
        if parts.username is None and parts.password is None and not parts.fragment and not parts.query:
            return url
        raise ValueError(f"{what} {url[:200]!r} has a user, a query or a fragment; expected https://HOST/PATH")
    raise ValueError(f"{what} is {url[:200]!r}; expected an https URL")


def get_json(url: str, *, ca: str | None = None) -> dict[str, Any]:
    """Fetch a JSON object. Raises FetchError.

    Args:
        url: one that `check_url` accepts.
        ca: certificates in PEM to trust instead of the system's.
    """
    check_url(url, what="The URL of keys")
    end = time.monotonic() + SECONDS
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "lora-registry"}
    try:
        verify: ssl.SSLContext | bool = ssl.create_default_context(cadata=ca) if ca else url.startswith("https:")
        # Loopback never goes through a proxy.
        mounts: Any = {f"all://{host}": None for host in _LOOPBACK}
        with (
            httpx2.Client(verify=verify, timeout=SECONDS, follow_redirects=False, mounts=mounts) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise FetchError(f"{url} answered {response.status_code}; expected 200")
            body = bytearray()
            for chunk in response.iter_raw(16 * 1024):
                body += chunk
                if len(body) > MAX_BYTES:
                    raise FetchError(f"{url} is larger than {MAX_BYTES} bytes")
                if time.monotonic() > end:
                    raise FetchError(f"{url} took more than {SECONDS:g} seconds")
    except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError, OSError) as error:
        raise FetchError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FetchError(f"{url} is not JSON") from error
    if not isinstance(document, dict):
        raise FetchError(f"{url} is not a JSON object")
    return document


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
