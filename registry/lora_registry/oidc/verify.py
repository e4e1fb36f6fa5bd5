"""Verify an identity token: its form, its signature by a trusted issuer's key, its times and its audience."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lora_registry.oidc.keys import Jwk, KeyCache, KeySource
from lora_registry.oidc.refusal import RefusedTokenError

MAX_TOKEN: Final = 16 * 1024
MAX_DEPTH: Final = 16
LEEWAY_SECONDS: Final = 30
TYPES: Final = (None, "jwt", "at+jwt")
"""Of the header `typ`, in lower case. Others, such as logout tokens, have the same claims and another meaning."""

ALGORITHMS: Final[dict[str, tuple[str, str | None]]] = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Signature algorithms with the type and curve of their keys. None is symmetric."""

_REQUIRED: Final = ("iss", "aud", "exp", "iat")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a verified token says.

    Args:
        issuer, audience: of the token; the audience is the only one.
        access: it is an access token (`at+jwt`), not an identity token.
        claims: all claims; nested objects are flattened, with `/` between the names.
        expires_at: seconds since the epoch.
        once: identifies the token among all tokens of all issuers, to take it once.
    """

    issuer: str
    audience: str
    access: bool
    claims: Mapping[str, Any]
    expires_at: int
    once: str


def looks_like_jwt(secret: str) -> bool:
    """Whether a bearer token has the form of a JWT. Tokens of the registry have no dots."""
    return secret.count(".") == 2 and secret.startswith("ey")


def verify(token: str, sources: Mapping[str, KeySource], keys: KeyCache) -> Identity:
    """Return what a token says. Raises RefusedTokenError.

    sources: the trusted issuers. A token of any other is refused before anything is fetched.
    """
    import jwt

    if len(token) > MAX_TOKEN:
        raise RefusedTokenError(f"it has {len(token)} characters; at most {MAX_TOKEN} are read")
    try:
        peek = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError) as error:
        raise RefusedTokenError(
            f"it is not a JWT: {type(error).__name__}", public="The identity token is not a JSON Web Token."
        ) from error
    header, claims = peek["header"], peek["payload"]
    _refuse_by_time(claims)
    source = sources.get(claims["iss"]) if isinstance(claims.get("iss"), str) else None
    if source is None:
        raise RefusedTokenError(f"no trust rule names its issuer {str(claims.get('iss'))[:200]!r}")
    key = _key(header, source, keys)
    try:
        verified: dict[str, Any] = jwt.decode(
            token,
            jwt.PyJWK(key, algorithm=header["alg"]),
            algorithms=list(ALGORITHMS),
            issuer=source.issuer,
            leeway=LEEWAY_SECONDS,
            # PyJWT's own check of the audience accepts several audiences, or with strict_aud no list at all, and
            # Kubernetes always sends a list.
            options={"require": list(_REQUIRED), "verify_aud": False, "enforce_minimum_key_length": True},
        )
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
        raise RefusedTokenError(f"{type(error).__name__}: {error}") from error
    if "events" in verified:
        raise RefusedTokenError("it is a security event, not an identity token")
    return Identity(
        issuer=source.issuer,
        audience=_audience(verified["aud"]),
        access=str(header.get("typ")).lower() == "at+jwt",
        claims=_flat(verified),
        expires_at=int(verified["exp"]),
        once=_once(token, source.issuer, verified.get("jti")),
    )


def _refuse_by_time(claims: Mapping[str, Any]) -> None:
    """Tell the sender if the token is not valid now. It says so itself, so this may be public."""
    now = time.time()
    expires, begins = claims.get("exp"), claims.get("nbf")
    if isinstance(expires, int | float) and expires <= now - LEEWAY_SECONDS:
        raise RefusedTokenError("it has expired", public="The identity token has expired.")
    for begin in (begins, claims.get("iat")):
        if isinstance(begin, int | float) and begin > now + LEEWAY_SECONDS:
            raise RefusedTokenError("it is not yet valid", public="The identity token is not yet valid.")


def _key(header: Mapping[str, Any], source: KeySource, keys: KeyCache) -> Jwk:
    """The issuer's key that the header names. The algorithm must be allowed and must fit the key."""
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise RefusedTokenError(f"its algorithm is {str(algorithm)[:20]!r}; expected one of {', '.join(ALGORITHMS)}")
    if "crit" in header or "b64" in header:
        raise RefusedTokenError("its header has critical extensions")
    if (kind.lower() if isinstance(kind, str) else kind) not in TYPES:
        raise RefusedTokenError(f"its type is {str(kind)[:40]!r}; expected JWT")
    if not isinstance(kid, str):
        raise RefusedTokenError("its header has no key id (`kid`)")
    kty, curve = ALGORITHMS[algorithm]
    key = keys.find(source, kid, kty)
    if key is None:
        raise RefusedTokenError(f"{source.issuer} has no {kty} key with the id {kid[:100]!r}")
    if key.get("alg", algorithm) != algorithm or (curve is not None and key.get("crv") != curve):
        raise RefusedTokenError(f"the key {kid[:100]!r} is not for {algorithm}")
    return key


def _audience(value: Any) -> str:
    """The only audience: a token that is for two services could be sent from one to the other."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise RefusedTokenError("it has not exactly one audience")
    return value


def _flat(claims: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    if prefix.count("/") > MAX_DEPTH:
        raise RefusedTokenError(f"its claims have more than {MAX_DEPTH} levels")
    found: dict[str, Any] = {}
    for name, value in claims.items():
        parts = _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
        for key, part in parts.items():
            if key in found:
                raise RefusedTokenError(f"it has the claim {key[:100]!r} in two forms")
            found[key] = part
    return found


def _once(token: str, issuer: str, token_id: Any) -> str:
    """By the token's id, or what was signed if it has none: the signature itself can be written in several ways."""
    what = f"{issuer}\0{token_id}" if isinstance(token_id, str) and token_id else token.rpartition(".")[0]
    return hashlib.sha256(what.encode()).hexdigest()
