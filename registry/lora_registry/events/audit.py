"""The audit log. Events are written in the transaction of the change, so they match the changes exactly."""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import event, func, insert
from sqlalchemy.orm import Session as OrmSession
from sqlmodel import Session, col, select

from lora_contract.errors import RegistryError
from lora_contract.wire.jobs import EventList, EventView
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import AuditEvent, RecordExport
from lora_registry.runtime import paging
from lora_registry.runtime.clock import iso, now

_LOCK_KEY: Final = 7305618
_PENDING: Final = "events"

RIGHTS: Final = (
    *("token-created", "token-rotated", "token-revoked", "grants-removed", "grants-changed", "visibility-set"),
    *("trust-added", "trust-removed", "issuer-keys-set", "token-issued", "signed-out"),
)
"""Changes of rights, which only administrators read; `namespace` may be a pattern in them."""


def record(session: Session, kind: str, *, principal: Principal, namespace: str, subject: str, **facts: Any) -> None:
    """Add an event to the caller's transaction; it is written on commit."""
    session.info.setdefault(_PENDING, []).append(
        {
            "kind": kind,
            "at": now(),
            "actor": principal.name,
            "namespace": namespace,
            "subject": subject,
            "facts": json.dumps(facts, sort_keys=True),
        }
    )


@event.listens_for(Session, "before_commit")
def _write_pending(session: OrmSession) -> None:
    """Assign ids in the order of commits: otherwise a reader that resumes by id would skip an event of an open
    transaction.

    The lock is the last one taken, so it cannot deadlock, and is held only during the commit.
    """
    pending = session.info.pop(_PENDING, None)
    if not pending:
        return
    session.flush()
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    session.execute(insert(AuditEvent), pending)


@event.listens_for(Session, "after_rollback")
def _discard_pending(session: OrmSession) -> None:
    session.info.pop(_PENDING, None)


def last_removed(session: Session) -> int:
    """Return the id of the last event that was exported and removed; 0 if none was."""
    done = select(func.max(RecordExport.last_id)).where(col(RecordExport.done_at).is_not(None))
    return session.exec(done).one() or 0


def read(caller: Caller, *, after: str | None, limit: int) -> EventList:
    """List the events of namespaces in which the caller has a grant, oldest first. Visibility does not open the log.

    The page has a cursor even at the end of the log, so that the client can resume later. It is behind the events of
    others too: it must not grow old while nothing happens that the caller may read. Raises `expired`.
    """
    caller.require_signed_in()
    reader, admin = caller.principal.granted("reader"), caller.principal.granted("admin")
    about_rights = col(AuditEvent.kind).in_(RIGHTS)
    query = select(AuditEvent).order_by(col(AuditEvent.id)).limit(limit)
    key = paging.decode(after, int)
    if key is not None:
        query = query.where(col(AuditEvent.id) > key[0])
    namespace = col(AuditEvent.namespace)
    query = query.where(reader.where(namespace), ~about_rights | admin.where(namespace))
    with caller.ctx.db.read() as session:
        newest = session.exec(select(func.max(AuditEvent.id))).one() or 0
        rows = list(session.exec(query.where(col(AuditEvent.id) <= newest)))
        removed = last_removed(session)  # after the rows: what was removed while they were read is missing in them
    if key is not None and key[0] < removed:
        raise RegistryError("expired", "Events after this cursor were removed, since they are older than is kept.")
    last = rows[-1].id if len(rows) == limit else newest
    return EventList(
        items=[
            EventView(
                id=row.id,
                kind=row.kind,
                at=iso(row.at),
                actor=row.actor,
                subject=row.subject,
                facts=json.loads(row.facts),
            )
            for row in rows
        ],
        next_cursor=paging.encode(last) if last else after,
    )
