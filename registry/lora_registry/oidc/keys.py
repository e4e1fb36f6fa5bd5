"""Signing keys of issuers, cached per process.

Keys come from the issuer's discovery document, from a URL that an administrator gave, or from a stored document: never
from a URL that a token names.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from lora_contract.errors import RegistryError
from lora_registry.oidc.fetch import FetchError, check_url, get_json

log = logging.getLogger(__name__)

DISCOVERY: Final = "/.well-known/openid-configuration"
RETRY_SECONDS: Final = 60.0
"""An issuer is asked at most once in this time, whatever tokens arrive."""
FRESH_SECONDS: Final = 3600.0
"""Older keys are fetched again when they are next used, so that a key that the issuer withdrew is forgotten."""
WAITING: Final = 8
"""Requests that wait for the keys of an issuer at a time: others must not hold a thread for them."""
MAX_KEYS: Final = 100
MAX_ISSUERS: Final = 256

Jwk: TypeAlias = dict[str, Any]
KeySet: TypeAlias = Mapping[tuple[str, str], Jwk]
"""Keys by their id and type."""


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the keys of an issuer are.

    Args:
        issuer: URL, exactly as tokens have it in `iss`.
        jwks_url: URL of the keys; None: as the issuer's discovery document says.
        jwks: the key set itself, as JSON; nothing is fetched then.
        ca: certificates in PEM that the issuer's server is verified with; None: the system's.
    """

    issuer: str
    jwks_url: str | None = None
    jwks: str | None = field(default=None, repr=False)
    ca: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(WAITING))
    keys: KeySet = field(default_factory=dict)
    fetched: float = float("-inf")
    tried: float = float("-inf")


class KeyCache:
    """Keys by their source. Thread-safe. clock: seconds, monotonic."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[KeySource, _Entry] = {}

    def find(self, source: KeySource, kid: str, kty: str) -> Jwk | None:
        """Return a key of an issuer, from the cache if it is there; None if the issuer has no such key now.

        Raises RegistryError `unavailable` if too many requests wait for the issuer.
        """
        entry = self._entry(source)
        found = entry.keys.get((kid, kty))
        if found is not None:
            if self._clock() - entry.fetched > FRESH_SECONDS and entry.lock.acquire(blocking=False):
                try:
                    self._refresh(source, entry)
                finally:
                    entry.lock.release()
            return entry.keys.get((kid, kty))
        if self._clock() - entry.tried < RETRY_SECONDS and not entry.lock.locked():
            return None
        if not entry.waiting.acquire(blocking=False):
            raise RegistryError("unavailable", "Too many requests wait for an issuer of identity tokens.")
        try:
            with entry.lock:
                if (kid, kty) not in entry.keys:
                    self._refresh(source, entry)
                return entry.keys.get((kid, kty))
        finally:
            entry.waiting.release()

    def _entry(self, source: KeySource) -> _Entry:
        with self._lock:
            entry = self._entries.pop(source, None) or _Entry()
            self._entries[source] = entry  # the most recently used is the last
            while len(self._entries) > MAX_ISSUERS:
                del self._entries[next(iter(self._entries))]
            return entry

    def _refresh(self, source: KeySource, entry: _Entry) -> None:
        """Fetch the keys unless that was tried a moment ago. Old keys are kept on an error."""
        if self._clock() - entry.tried < RETRY_SECONDS:
            return
        entry.tried = self._clock()
        try:
            entry.keys = load(source)
        except (FetchError, ValueError) as error:
            log.warning("The keys of the issuer %s cannot be read: %s.", source.issuer, error)
        else:
            entry.fetched = self._clock()


def load(source: KeySource) -> KeySet:
    """Read the keys of an issuer now. Raises FetchError, and ValueError if the document has no usable key."""
    if source.jwks is not None:
        return parse_jwks(json.loads(source.jwks))  # stored by an administrator, and read once then
    url = source.jwks_url
    if url is None:
        document = get_json(source.issuer.rstrip("/") + DISCOVERY, ca=source.ca)
        if document.get("issuer") != source.issuer:
            raise ValueError(f"its discovery document is of the issuer {str(document.get('issuer'))[:200]!r}")
        url = check_url(str(document.get("jwks_uri")), what="jwks_uri")
        if url.startswith("http:") and not source.issuer.startswith("http:"):
            raise ValueError(f"its jwks_uri is {url[:200]!r}; expected an https URL")
    return parse_jwks(get_json(url, ca=source.ca))


def parse_jwks(document: Any) -> KeySet:
    """Return the public signing keys of a key set (RFC 7517). Raises ValueError if it has none.

    Symmetric keys are left out: whoever verifies with one could also sign.
    """
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError("a key set must have a list `keys`")  # noqa: TRY004
    if len(keys) > MAX_KEYS:
        raise ValueError(f"a key set has {len(keys)} keys; at most {MAX_KEYS} are read")
    found: dict[tuple[str, str], Jwk] = {}
    for key in keys:
        if not isinstance(key, dict) or not isinstance(kid := key.get("kid"), str):
            continue
        operations = key.get("key_ops")
        signs = key.get("use", "sig") == "sig" and (operations is None or "verify" in operations)
        if signs and key.get("kty") in ("RSA", "EC", "OKP"):
            found.setdefault((kid, key["kty"]), key)
    if not found:
        raise ValueError("the key set has no public signing key with an id (`kid`)")
    return found
