"""Secrets of tokens. Only their sha256 is stored; they are shown once.

The format is `hf_` and letters and digits, because llama.cpp sends no other format.
"""

from __future__ import annotations

import hashlib
import secrets
import string
from dataclasses import dataclass

from sqlalchemy import or_
from sqlmodel import Session, col, select

from lora_contract.errors import RegistryError
from lora_contract.roles import Grant, check_role
from lora_registry.auth.principals import Principal
from lora_registry.db.dialect import now_sql
from lora_registry.db.tables import Token, TokenGrant, TokenSecret

_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Verified:
    """A token that a request sent. last_used_at: as stored before this request."""

    token_id: int
    last_used_at: int | None
    principal: Principal


def new_secret() -> str:
    return "hf_" + "".join(secrets.choice(_ALPHABET) for _ in range(40))


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def verify(session: Session, secret: str) -> Verified:
    """Return the principal of a secret, with one query. Raises RegistryError `unauthenticated`."""
    now = now_sql(session.get_bind())
    query = (
        select(Token, TokenGrant)
        .join(TokenSecret, col(TokenSecret.token_id) == col(Token.id))
        .join(TokenGrant, col(TokenGrant.token_id) == col(Token.id))
        .where(
            TokenSecret.hash == hash_of(secret),
            col(Token.revoked_at).is_(None),
            or_(col(Token.expires_at).is_(None), col(Token.expires_at) > now),
            or_(col(TokenSecret.expires_at).is_(None), col(TokenSecret.expires_at) > now),
        )
        .order_by(col(TokenGrant.pattern))
    )
    rows = session.exec(query).all()
    if not rows:
        raise RegistryError("unauthenticated", "The token is unknown, expired or revoked.")
    token = rows[0][0]
    grants = tuple(Grant(grant.pattern, check_role(grant.role)) for _, grant in rows)
    return Verified(token.id, token.last_used_at, Principal(token.name, grants))
