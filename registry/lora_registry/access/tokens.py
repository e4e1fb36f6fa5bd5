"""Tokens: create, list, rotate, revoke. Each change of rights is an event for each namespace that it concerns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.roles import Grant
from lora_contract.wire.access import TokenList, TokenView
from lora_registry.access import store
from lora_registry.auth.principals import ANONYMOUS, LOCAL, OPERATOR, WORKER, Principal
from lora_registry.auth.tokens import hash_of, new_secret
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import Token, TokenGrant, TokenSecret
from lora_registry.events import audit
from lora_registry.runtime import paging
from lora_registry.runtime.clock import iso

MAX_NAME: Final = 128
MAX_NOTE: Final = 4096
MAX_GRANTS: Final = 64
RESERVED: Final = tuple(each.name for each in (LOCAL, ANONYMOUS, WORKER, OPERATOR))
SECOND: Final = 1_000_000


def create(
    session: Session,
    principal: Principal,
    name: str,
    grants: Sequence[Grant],
    *,
    lifetime: float | None = None,
    note: str = "",
) -> str:
    """Create a token and return its secret, which cannot be read again.

    Args:
        lifetime: seconds until it expires; None: it does not.

    Raises `usage`, `exists` for a name that was used before, `forbidden` for a grant that the caller may not give.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise RegistryError("usage", f"A token name must have 1 to {MAX_NAME} printable characters.")
    if "#" in name:
        raise RegistryError("usage", "A token name must not contain '#': names of callers by identity tokens do.")
    if name in RESERVED:
        raise RegistryError("usage", f"{name!r} is what events call the service's own work; choose another name.")
    if len(note) > MAX_NOTE or "\0" in note:
        raise RegistryError("usage", f"A note must have at most {MAX_NOTE} characters, none of them NUL.")
    if not 0 < len(grants) <= MAX_GRANTS:
        raise RegistryError("usage", f"A token must have 1 to {MAX_GRANTS} grants, not {len(grants)}.")
    if len({grant.pattern for grant in grants}) < len(grants):
        raise RegistryError("usage", "Two grants have the same pattern; give each pattern one role.")
    for grant in grants:
        if not principal.may("admin", grant.pattern):
            raise RegistryError("forbidden", f"To grant {grant} requires the role admin in {grant.pattern!r}.")
    if (found := store.token(session, name)) is not None:
        raise RegistryError(
            "exists",
            f"A token named {name!r} {'was revoked' if found.revoked_at else 'exists'}; names are not reused, since "
            "the audit log has them.",
            hint=f"Give it another name, or renew its secret with `lora-registry token rotate {name}`.",
        )
    at = database_now(session)
    row = Token(name=name, note=note, created_by=principal.name, created_at=at, expires_at=_after(at, lifetime))
    session.add(row)
    session.flush()
    session.add_all(TokenGrant(token_id=row.id, pattern=grant.pattern, role=grant.role) for grant in grants)
    _record(session, "token-created", principal, row, grants)
    return _add_secret(session, row, at)


def rotate(
    session: Session, principal: Principal, name: str, *, overlap: float = 0, lifetime: float | None = None
) -> str:
    """Give a token a new secret and return it. Its name, grants and note stay.

    Args:
        overlap: seconds for which the old secret remains valid.
        lifetime: seconds until the token expires from now; None: as before.
    """
    row, grants = administered(session, principal, name)
    if len(grants) < len(store.grants(session, [row.id])[row.id]):
        raise RegistryError("forbidden", f"The token {name!r} also has grants in namespaces of others.")
    if row.revoked_at is not None:
        raise RegistryError("conflict", f"The token {name!r} was revoked.", hint="Create one with another name.")
    at = database_now(session)
    if lifetime is not None:
        row.expires_at = _after(at, lifetime)
    if row.expires_at is not None and row.expires_at <= at:
        raise RegistryError("conflict", f"The token {name!r} has expired.", hint="Add `--expires`, such as 30d.")
    store.end_secrets(session, row.id, at + int(overlap * SECOND))
    store.drop_secrets(session, row.id, at)
    _record(session, "token-rotated", principal, row, grants, overlap=overlap)
    return _add_secret(session, row, at)


def revoke(session: Session, principal: Principal, name: str) -> None:
    """Remove the grants of a token that the caller administers; without another one the token is revoked, at once.

    Repeating it is a no-op. Raises `not-found`.
    """
    row, grants = administered(session, principal, name)
    if row.revoked_at is not None:
        return
    if len(grants) < len(store.grants(session, [row.id])[row.id]):
        store.remove_grants(session, row.id, grants)
        _record(session, "grants-removed", principal, row, grants)
        return
    row.revoked_at = database_now(session)
    session.add(row)
    store.end_secrets(session, row.id, row.revoked_at)
    _record(session, "token-revoked", principal, row, grants)


def list_all(session: Session, principal: Principal, *, cursor: str | None = None, limit: int | None) -> TokenList:
    """List the tokens with a grant in a namespace that the caller administers, also revoked ones, by name."""
    after = paging.decode(cursor, str)
    rows = store.tokens(session, principal.granted("admin"), after=after[0] if after else None, limit=limit)
    grants = store.grants(session, [row.id for row in rows])
    return TokenList(
        items=[view(principal, row, grants[row.id]) for row in rows],
        next_cursor=paging.encode(rows[-1].name) if len(rows) == limit else None,
    )


def administered(session: Session, principal: Principal, name: str) -> tuple[Token, list[Grant]]:
    """Return a token, locked, and those of its grants that the caller administers."""
    row = store.token(session, name, lock=True)
    grants = [] if row is None else _own(principal, store.grants(session, [row.id]).get(row.id, []))
    if row is None or not grants:
        raise RegistryError(
            "not-found", f"There is no token {name[:MAX_NAME]!r}.", hint="List the tokens with `token list`."
        )
    return row, grants


def _own(principal: Principal, grants: Iterable[Grant]) -> list[Grant]:
    return [grant for grant in grants if principal.may("admin", grant.pattern)]


def _add_secret(session: Session, row: Token, at: int) -> str:
    secret = new_secret()
    session.add(TokenSecret(hash=hash_of(secret), token_id=row.id, created_at=at))
    return secret


def _after(at: int, lifetime: float | None) -> int | None:
    return None if lifetime is None else at + int(lifetime * SECOND)


def _record(
    session: Session, kind: str, principal: Principal, row: Token, grants: Sequence[Grant], **facts: object
) -> None:
    """Record one event for each grant, so that each is read by the administrators of its namespaces alone."""
    expires = None if row.expires_at is None else iso(row.expires_at)
    for grant in grants:
        audit.record(
            session,
            kind,
            principal=principal,
            namespace=grant.pattern,
            subject=row.name,
            grant=str(grant),
            expires=expires,
            **facts,
        )


def view(principal: Principal, row: Token, grants: Sequence[Grant]) -> TokenView:
    own = _own(principal, grants)
    elsewhere = len(own) < len(grants)
    return TokenView(
        name=row.name,
        grants=own,
        created_at=iso(row.created_at),
        created_by=row.created_by,
        expires_at=None if row.expires_at is None else iso(row.expires_at),
        last_used_at=None if row.last_used_at is None else iso(row.last_used_at),
        revoked_at=None if row.revoked_at is None else iso(row.revoked_at),
        note="" if elsewhere else row.note,
        elsewhere=elsewhere,
    )
