"""Named queries on trust rules, taken identity tokens and issued tokens. SQL only."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import or_, true
from sqlmodel import Session, col, delete, exists, select, update

from lora_contract.roles import Grant
from lora_registry.db.dialect import insert_ignore
from lora_registry.db.tables import (
    TakenToken,
    Token,
    TokenGrant,
    TokenOrigin,
    TokenSecret,
    TrustRuleRow,
)


def live_rule(session: Session, name: str) -> TrustRuleRow | None:
    query = select(TrustRuleRow).where(TrustRuleRow.name == name, col(TrustRuleRow.removed_at).is_(None))
    return session.exec(query.with_for_update()).first()


def lock_rules(session: Session, rule_ids: Iterable[int]) -> bool:
    """Keep rules in force until the end of the transaction; False if one was removed."""
    wanted = set(rule_ids)
    query = select(TrustRuleRow.id).where(col(TrustRuleRow.id).in_(wanted), col(TrustRuleRow.removed_at).is_(None))
    return set(session.exec(query.order_by(col(TrustRuleRow.id)).with_for_update(read=True))) == wanted


def take(session: Session, key: str, *, expires_at: int, at: int) -> bool:
    """Take an identity token; False if it was taken before. Forgets those that have expired."""
    session.exec(delete(TakenToken).where(col(TakenToken.expires_at) < at))
    # By what is returned: the count of rows is -1 on PostgreSQL.
    new = insert_ignore(session, TakenToken).values(key=key, expires_at=expires_at).returning(col(TakenToken.key))
    return session.execute(new).first() is not None


def lock_token(session: Session, name: str, *, created_by: str, at: int) -> tuple[Token, bool]:
    """Return the token of this name, locked, created if it is missing; and whether it was."""
    values = {"name": name, "note": "", "created_by": created_by, "created_at": at}
    new = session.execute(insert_ignore(session, Token).values(**values).returning(col(Token.id))).first()
    row = session.exec(select(Token).where(Token.name == name).with_for_update()).one()
    return row, new is not None


def end_secret(session: Session, token_id: int, hashed: str) -> bool:
    """Forget a secret of a token. Return whether it had it."""
    statement = delete(TokenSecret).where(col(TokenSecret.token_id) == token_id, col(TokenSecret.hash) == hashed)
    return session.execute(statement.returning(col(TokenSecret.hash))).first() is not None


def forget_secrets(session: Session, token_id: int, *, at: int, every: bool) -> None:
    """Forget the secrets of an issued token that have expired, or have no end of their own, as one that was rotated by
    hand: it would last as long as the token is issued again. every: all."""
    ended = or_(col(TokenSecret.expires_at).is_(None), col(TokenSecret.expires_at) <= at)
    session.exec(delete(TokenSecret).where(col(TokenSecret.token_id) == token_id, true() if every else ended))


def replace_rights(session: Session, token_id: int, rule_ids: Iterable[int], grants: Iterable[Grant]) -> None:
    session.exec(delete(TokenOrigin).where(col(TokenOrigin.token_id) == token_id))
    session.exec(delete(TokenGrant).where(col(TokenGrant.token_id) == token_id))
    session.add_all(TokenOrigin(token_id=token_id, rule_id=rule_id) for rule_id in rule_ids)
    session.add_all(TokenGrant(token_id=token_id, pattern=grant.pattern, role=grant.role) for grant in grants)


def forget_tokens(session: Session, *, expired_before: int) -> None:
    """Forget issued tokens that expired long ago. Events keep their names."""
    issued = exists().where(col(TokenOrigin.token_id) == col(Token.id))
    old = select(Token.id).where(issued, col(Token.expires_at) < expired_before).limit(100)
    ids = list(session.exec(old.with_for_update(skip_locked=True)))
    if ids:
        session.exec(delete(TokenOrigin).where(col(TokenOrigin.token_id).in_(ids)))
        session.exec(delete(TokenGrant).where(col(TokenGrant.token_id).in_(ids)))
        session.exec(delete(TokenSecret).where(col(TokenSecret.token_id).in_(ids)))
        session.exec(delete(Token).where(col(Token.id).in_(ids)))


def end_tokens(session: Session, rule_id: int, *, at: int) -> None:
    """End the tokens that a rule gave grants."""
    given = select(TokenOrigin.token_id).where(TokenOrigin.rule_id == rule_id)
    session.exec(
        update(TokenSecret)
        .where(col(TokenSecret.token_id).in_(given), col(TokenSecret.expires_at) > at)
        .values(expires_at=at)
    )
