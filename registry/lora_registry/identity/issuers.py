"""Where the keys of issuers are: stored once for all rules that name an issuer."""

from __future__ import annotations

import json
import ssl

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.roles import ALL
from lora_contract.wire.identity import IssuerKeys
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import TrustedIssuer
from lora_registry.events import audit
from lora_registry.oidc.fetch import check_url
from lora_registry.oidc.keys import parse_jwks


def set_keys(caller: Caller, issuer: str, keys: IssuerKeys) -> None:
    """Say where the keys of an issuer are. Raises `not-found` if no rule has named it."""
    caller.require_root()
    check(issuer, keys)
    with caller.ctx.db.write() as session:
        if session.get(TrustedIssuer, issuer) is None:
            raise RegistryError(
                "not-found",
                f"No trust rule names the issuer {issuer[:200]!r}.",
                hint="`lora-registry trust list` shows the issuers.",
            )
        keep(session, caller.principal, issuer, keys)


def check(issuer: str, keys: IssuerKeys | None) -> None:
    """Raise `usage` unless the issuer is an https URL (or loopback) and its keys can be read."""
    try:
        check_url(issuer, what="The issuer")
        if keys is None:
            return
        if keys.jwks_url is not None:
            check_url(keys.jwks_url, what="The URL of the keys")
        if keys.jwks is not None:
            parse_jwks(json.loads(keys.jwks))
        if keys.ca is not None:
            _check_certificates(keys.ca)
        if keys.jwks is not None and keys.jwks_url is not None:
            raise ValueError("the keys are given as a URL and as a file; expected one of them")
    except (ValueError, RecursionError) as error:
        text = str(error)
        raise RegistryError("usage", f"{text[:1].upper()}{text[1:]}.") from error


def keep(session: Session, principal: Principal, issuer: str, keys: IssuerKeys | None) -> None:
    """Store an issuer, and its keys unless they are None."""
    row = session.get(TrustedIssuer, issuer)
    if row is not None and (keys is None or (row.jwks_url, row.jwks, row.ca) == (keys.jwks_url, keys.jwks, keys.ca)):
        return
    row = row or TrustedIssuer(issuer=issuer)
    if keys is not None:
        row.jwks_url, row.jwks, row.ca = keys.jwks_url, keys.jwks, keys.ca
        source = "stored" if keys.jwks else keys.jwks_url or "discovery"
        audit.record(session, "issuer-keys-set", principal=principal, namespace=ALL, subject=issuer[:300], keys=source)
    session.add(row)
    session.flush()


def _check_certificates(pem: str) -> None:
    try:
        ssl.create_default_context(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("the CA bundle has no certificate in PEM") from error
