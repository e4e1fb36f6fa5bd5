"""Callers by identity tokens of other issuers, as trust rules say."""

from __future__ import annotations

import json
import logging

from sqlmodel import Session, col, exists, select

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_contract.roles import Grant
from lora_registry.auth.principals import Principal
from lora_registry.auth.tokens import hash_of
from lora_registry.context import Context
from lora_registry.db.tables import TrustedIssuer, TrustRuleRow
from lora_registry.oidc.keys import KeySource
from lora_registry.oidc.refusal import RefusedTokenError
from lora_registry.oidc.rules import KINDS, Trusted, TrustRule, choose
from lora_registry.oidc.verify import Identity, verify

log = logging.getLogger(__name__)


def bearer(ctx: Context, token: str) -> Principal:
    """Return the caller that a cluster's service account token stands for. Raises `unauthenticated`.

    The verdict is kept for up to a minute: inference servers send the same token with every request of a pull.
    """
    key = hash_of(token)
    known: Principal | None = ctx.verdicts.get(key)
    if known is not None:
        return known
    try:
        identity, trusted = recognize(ctx, token)
        if not KINDS[trusted.kind].bearer:
            raise RefusedTokenError(f"a {trusted.kind} token must be exchanged")
    except RefusedTokenError as refusal:
        raise refused(refusal) from refusal
    principal = Principal(trusted.name, trusted.grants)
    ctx.verdicts.put(key, principal, until=identity.expires_at)
    return principal


def recognize(ctx: Context, token: str) -> tuple[Identity, Trusted]:
    """Verify an identity token and return what the rules give to it. Raises RefusedTokenError."""
    with ctx.db.read() as session:
        sources = {row.issuer: KeySource(row.issuer, row.jwks_url, row.jwks, row.ca) for row in _issuers(session)}
        rules = [rule_of(row) for row in rules_in_force(session)]
    identity = verify(token, sources, ctx.keys)
    return identity, choose(rules, identity)


def refused(refusal: RefusedTokenError) -> RegistryError:
    """The sender learns nothing of rules, issuers and keys; the log has the reason."""
    log.warning("An identity token was refused: %s.", refusal.reason)
    return RegistryError(
        "unauthenticated",
        refusal.public,
        hint="Request one for the audience of /api/v1/token-exchange/audience. The service's log has the reason; "
        "`lora-registry trust list` shows what it accepts.",
    )


def rules_in_force(session: Session) -> list[TrustRuleRow]:
    """The rules that were not removed, by name."""
    query = select(TrustRuleRow).where(col(TrustRuleRow.removed_at).is_(None)).order_by(col(TrustRuleRow.name))
    return list(session.exec(query))


def rule_of(row: TrustRuleRow) -> TrustRule:
    return TrustRule(
        id=row.id,
        name=row.name,
        kind=row.kind,  # type: ignore[arg-type]  # the database checks it
        issuer=row.issuer,
        audience=row.audience,
        claims=json.loads(row.claims),
        grants=decoding.decode(row.grants, tuple[Grant, ...]),
        seconds=row.seconds,
        pull_requests=row.pull_requests,
    )


def _issuers(session: Session) -> list[TrustedIssuer]:
    """The issuers that a rule in force names."""
    named = exists().where(
        col(TrustRuleRow.issuer) == col(TrustedIssuer.issuer), col(TrustRuleRow.removed_at).is_(None)
    )
    return list(session.exec(select(TrustedIssuer).where(named)))
