"""The exchange of an identity token for a token of the registry."""

from __future__ import annotations

from typing import Final

from sqlmodel import Session

from lora_contract.roles import ROLES, Grant
from lora_contract.wire.identity import ExchangeRequest, IssuedToken, SignedOut
from lora_registry.access import store as token_store
from lora_registry.auth import trusted as trusted_callers
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.auth.tokens import hash_of, new_secret
from lora_registry.context import Context
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import TokenSecret
from lora_registry.events import audit
from lora_registry.identity import store
from lora_registry.oidc.refusal import RefusedTokenError
from lora_registry.oidc.rules import KINDS, Trusted, facts_of
from lora_registry.oidc.verify import LEEWAY_SECONDS, Identity
from lora_registry.runtime.clock import iso

SECOND: Final = 1_000_000
KEEP: Final = 30 * 24 * 3600 * SECOND
"""How long an issued token is listed after it has expired."""
_FAR: Final = 1 << 40
"""Seconds since the epoch, beyond any sensible expiry and within 64 bits of microseconds."""
_FACTS: Final = (
    *("repository", "repository_id", "ref", "sha", "event_name", "workflow_ref", "job_workflow_ref", "environment"),
    *("run_id", "run_attempt", "actor", "project_path", "project_id", "pipeline_id", "job_id", "user_login"),
    *("kubernetes.io/namespace", "kubernetes.io/serviceaccount/name", "kubernetes.io/pod/name"),
    *("sub", "email", "preferred_username", "jti"),
)
"""Claims that the audit log keeps."""


def exchange(ctx: Context, request: ExchangeRequest) -> IssuedToken:
    """Issue a token of the registry for an identity token. Raises `unauthenticated`."""
    try:
        return _exchange(ctx, request)
    except RefusedTokenError as refusal:
        raise trusted_callers.refused(refusal) from refusal


def _exchange(ctx: Context, request: ExchangeRequest) -> IssuedToken:
    identity, trusted = trusted_callers.recognize(ctx, request.token)
    with ctx.db.write() as session:
        at = database_now(session)
        if not store.lock_rules(session, [rule.id for rule in trusted.rules]):
            raise RefusedTokenError("its rule was removed a moment ago")
        if KINDS[trusted.kind].once:
            until = (min(identity.expires_at, _FAR) + LEEWAY_SECONDS + 5) * SECOND
            if not store.take(session, identity.once, expires_at=until, at=at):
                raise RefusedTokenError("it was exchanged before", public="The identity token was exchanged before.")
        store.forget_tokens(session, expired_before=at - KEEP)
        return _issue(session, identity, trusted, at, request.host)


def sign_out(caller: Caller, secret: str) -> SignedOut:
    """End a secret that was issued for an identity token: others of the same person stay.

    One that was made by hand stays too: whoever made it may have given it to several programs.
    """
    with caller.ctx.db.write() as session:
        row = token_store.token(session, caller.principal.name, lock=True)
        if row is None or not token_store.is_issued(session, row.id):
            return SignedOut(name=caller.principal.name, ended=False)
        ended = store.end_secret(session, row.id, hash_of(secret))
        for grant in caller.principal.grants if ended else ():
            audit.record(
                session,
                "signed-out",
                principal=caller.principal,
                namespace=grant.pattern,
                subject=row.name,
                grant=str(grant),
            )
    return SignedOut(name=row.name, ended=ended)


def _issue(session: Session, identity: Identity, trusted: Trusted, at: int, host: str) -> IssuedToken:
    """Add a secret to the caller's token, and give the token the grants that the rules have now."""
    rule = trusted.rules[0]
    row, new = store.lock_token(session, trusted.name, created_by=f"trust rule {rule.name}", at=at)
    if not new and not token_store.is_issued(session, row.id):
        raise RefusedTokenError(f"the name {trusted.name!r} belongs to a token that was created by hand")
    grants = _highest(trusted.grants)
    expires_at = at + trusted.seconds * SECOND
    store.forget_secrets(session, row.id, at=at, every=row.revoked_at is not None)
    store.replace_rights(session, row.id, [each.id for each in trusted.rules], grants)
    row.revoked_at = None  # revoking ends what was issued; who may have more is what the rules say
    row.expires_at = max(row.expires_at or 0, expires_at)
    session.add(row)
    secret = new_secret()
    session.add(TokenSecret(hash=hash_of(secret), token_id=row.id, created_at=at, expires_at=expires_at))
    principal = Principal(trusted.name, grants)
    for grant in grants:
        audit.record(
            session,
            "token-issued",
            principal=principal,
            namespace=grant.pattern,
            subject=trusted.name,
            grant=str(grant),
            rules=[each.name for each in trusted.rules],
            issuer=identity.issuer,
            expires=iso(expires_at),
            claims=facts_of(identity, _FACTS),
            host=host,
        )
    return IssuedToken(token=secret, name=trusted.name, grants=list(grants), expires_at=iso(expires_at))


def _highest(grants: tuple[Grant, ...]) -> tuple[Grant, ...]:
    """One grant for each pattern."""
    best: dict[str, Grant] = {}
    for grant in sorted(grants, key=lambda each: ROLES.index(each.role)):
        best[grant.pattern] = grant
    return tuple(best.values())
