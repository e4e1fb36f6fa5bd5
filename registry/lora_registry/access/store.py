"""Named queries on namespaces, tokens and grants. SQL only: no checks, permissions or transitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlmodel import Session, col, delete, exists, or_, select, update

from lora_contract.roles import Grant, Role, check_role
from lora_registry.db.dialect import insert_ignore
from lora_registry.db.scope import Scope
from lora_registry.db.tables import Namespace, Token, TokenGrant, TokenOrigin, TokenSecret


def namespace(session: Session, name: str) -> Namespace | None:
    return session.get(Namespace, name)


def namespaces(session: Session, scope: Scope, *, after: str | None, limit: int) -> list[Namespace]:
    """List namespaces by name."""
    query = select(Namespace).where(scope.where(col(Namespace.name))).order_by(col(Namespace.name)).limit(limit)
    if after is not None:
        query = query.where(col(Namespace.name) > after)
    return list(session.exec(query))


def lock_namespace(session: Session, name: str, at: int) -> Namespace:
    """Insert a namespace unless it exists, and lock its row until the end of the transaction."""
    values = {"name": name, "visibility": "private", "created_at": at}
    session.execute(insert_ignore(session, Namespace).values(**values))
    return session.exec(select(Namespace).where(Namespace.name == name).with_for_update()).one()


def token(session: Session, name: str, *, lock: bool = False) -> Token | None:
    query = select(Token).where(Token.name == name)
    return session.exec(query.with_for_update() if lock else query).first()


def tokens(session: Session, scope: Scope, *, after: str | None, limit: int | None) -> list[Token]:
    """List tokens with a grant in the scope, also revoked ones, by name."""
    granted = exists().where(col(TokenGrant.token_id) == col(Token.id), scope.where(col(TokenGrant.pattern)))
    query = select(Token).where(granted).order_by(col(Token.name)).limit(limit)
    if after is not None:
        query = query.where(col(Token.name) > after)
    return list(session.exec(query))


def grants(session: Session, token_ids: Iterable[int]) -> dict[int, list[Grant]]:
    """Return the grants of several tokens in one query."""
    result: dict[int, list[Grant]] = {}
    query = select(TokenGrant).where(col(TokenGrant.token_id).in_(set(token_ids))).order_by(col(TokenGrant.pattern))
    for row in session.exec(query):
        result.setdefault(row.token_id, []).append(Grant(row.pattern, check_role(row.role)))
    return result


def remove_grants(session: Session, token_id: int, removed: Iterable[Grant]) -> None:
    patterns = [grant.pattern for grant in removed]
    session.exec(delete(TokenGrant).where(col(TokenGrant.token_id) == token_id, col(TokenGrant.pattern).in_(patterns)))


def set_grants(session: Session, token_id: int, roles: Mapping[str, Role | None]) -> None:
    """Set the role of a token for each of these patterns; None removes the grant."""
    patterns = list(roles)
    session.exec(delete(TokenGrant).where(col(TokenGrant.token_id) == token_id, col(TokenGrant.pattern).in_(patterns)))
    session.add_all(
        TokenGrant(token_id=token_id, pattern=pattern, role=role) for pattern, role in roles.items() if role
    )
    session.flush()


def is_issued(session: Session, token_id: int) -> bool:
    """Whether a token was issued for an identity token."""
    query = select(TokenOrigin.rule_id).where(TokenOrigin.token_id == token_id).limit(1)
    return session.exec(query).first() is not None


def end_secrets(session: Session, token_id: int, at: int) -> None:
    """Let the secrets of a token end at a time, unless they end before."""
    later = or_(col(TokenSecret.expires_at).is_(None), col(TokenSecret.expires_at) > at)
    session.exec(update(TokenSecret).where(col(TokenSecret.token_id) == token_id, later).values(expires_at=at))


def drop_secrets(session: Session, token_id: int, before: int) -> None:
    """Delete secrets that ended before a time."""
    session.exec(delete(TokenSecret).where(col(TokenSecret.token_id) == token_id, col(TokenSecret.expires_at) < before))
