"""The log of what was done. Written in the transaction of the change itself, so none is lost and none invented."""

from __future__ import annotations

import json
from typing import Any

from sqlmodel import Session, col, select

from lora_reg.spec.wire import EventList, EventView
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import AuditEvent
from lora_registry.runtime import paging
from lora_registry.runtime.clock import iso, now


def record(session: Session, kind: str, *, principal: Principal, namespace: str, subject: str, **facts: Any) -> None:
    session.add(
        AuditEvent(
            kind=kind,
            at=now(),
            actor=principal.name,
            namespace=namespace,
            subject=subject,
            facts=json.dumps(facts, sort_keys=True),
        )
    )


def read(session: Session, *, principal: Principal, after: str | None, limit: int) -> EventList:
    """Events in the order of their ids, those that the caller may read.

    Always with a cursor where there is anything behind it: whoever has read to the end goes on from there later.
    """
    query = select(AuditEvent).order_by(col(AuditEvent.id)).limit(limit)
    if (key := paging.decode(after, int)) is not None:
        query = query.where(col(AuditEvent.id) > key[0])
    if (namespace := principal.visible()) is not None:
        query = query.where(AuditEvent.namespace == namespace)
    rows = list(session.exec(query))
    return EventList(
        items=[
            EventView(
                id=row.id or 0,
                kind=row.kind,
                at=iso(row.at),
                actor=row.actor,
                subject=row.subject,
                facts=json.loads(row.facts),
            )
            for row in rows
        ],
        next_cursor=paging.encode(rows[-1].id or 0) if rows else after,
    )
