"""Idempotency-Key: a write that is sent twice is executed once.

The operations themselves are idempotent (same content, same version; same recipe, same job), so a process killed
between the work and its record does no harm when the request is repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from sqlmodel import Session, col, delete

from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.db.dialect import insert_ignore
from lora_registry.db.tables import IdempotencyRecord
from lora_registry.runtime.clock import now

KEEP_MICROSECONDS: Final = 24 * 3600 * 1_000_000
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
        row = _row(session, caller.principal, key)
    if row is not None:
        if row.request != fingerprint:
            raise RegistryError("idempotency-mismatch", "This Idempotency-Key was used for a different request.")
        return row.status, msgspec.json.decode(row.body.encode(), type=result)
    status, value = run()
    with caller.ctx.db.write() as session:
        session.exec(delete(IdempotencyRecord).where(col(IdempotencyRecord.created_at) < now() - KEEP_MICROSECONDS))
        session.execute(
            insert_ignore(session, IdempotencyRecord).values(
                author=caller.principal.name,
                key=key,
                request=fingerprint,
                status=status,
                body=msgspec.json.encode(value).decode(),
                created_at=now(),
            )
        )
    return status, value


def _row(session: Session, principal: Principal, key: str) -> IdempotencyRecord | None:
    row = session.get(IdempotencyRecord, (principal.name, key))
    return row if row is not None and row.created_at >= now() - KEEP_MICROSECONDS else None
