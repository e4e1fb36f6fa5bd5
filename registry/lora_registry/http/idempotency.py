"""Idempotency-Key: a write that is sent twice is executed once.

The operations themselves are idempotent (same content, same version; same recipe, same job), so a process killed
between the work and its record does no harm when the request is repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from sqlmodel import Session, col, select

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.db.dialect import insert
from lora_registry.db.tables import IdempotencyRecord
from lora_registry.runtime.clock import now

DAY: Final = 24 * 3600 * 1_000_000
MAX_KEY: Final = 128

T = TypeVar("T", bound=msgspec.Struct)


def once(
    caller: Caller,
    key: str | None,
    request: tuple[str, msgspec.Struct],
    result: type[T],
    run: Callable[[], tuple[int, T]],
) -> tuple[int, T]:
    """Run once per key: return the status and result of `run`, or those stored under this key.

    request: route and decoded body; the same key with a different request raises `idempotency-mismatch`.
    """
    if key is None:
        return run()
    if not 0 < len(key) <= MAX_KEY or "\0" in key:
        raise RegistryError("invalid-request", f"An Idempotency-Key must have 1 to {MAX_KEY} characters.")
    fingerprint = hashlib.sha256(request[0].encode() + b"\0" + msgspec.json.encode(request[1])).hexdigest()
    with caller.ctx.db.read() as session:
        row = _row(session, caller, key)
    if row is not None:
        if row.request != fingerprint:
            raise RegistryError("idempotency-mismatch", "This Idempotency-Key was used for a different request.")
        return row.status, decoding.decode(row.body.encode(), result)
    status, value = run()
    with caller.ctx.db.write() as session:
        stored = {
            "request": fingerprint,
            "status": status,
            "body": msgspec.json.encode(value).decode(),
            "created_at": now(),
        }
        # An old one is not there for the requests, though it may not be removed yet.
        session.execute(
            insert(session.connection(), IdempotencyRecord)
            .values(author=caller.principal.name, key=key, **stored)
            .on_conflict_do_update(
                index_elements=[col(IdempotencyRecord.author), col(IdempotencyRecord.key)],
                set_=stored,
                where=col(IdempotencyRecord.created_at) < _oldest(caller),
            )
        )
    return status, value


def forget(session: Session, *, before: int, limit: int) -> int:
    """Remove records from before a time. Return their number."""
    old = select(IdempotencyRecord).where(IdempotencyRecord.created_at < before).limit(limit)
    rows = session.exec(old.with_for_update(skip_locked=True)).all()
    for row in rows:
        session.delete(row)
    return len(rows)


def _row(session: Session, caller: Caller, key: str) -> IdempotencyRecord | None:
    row = session.get(IdempotencyRecord, (caller.principal.name, key))
    return row if row is not None and row.created_at >= _oldest(caller) else None


def _oldest(caller: Caller) -> int:
    """The time from which on records count."""
    days = caller.ctx.settings.keep_idempotency_days
    return now() - int(days * DAY) if days else 0
