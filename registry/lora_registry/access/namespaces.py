"""Namespaces and who may read them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from lora_contract import reference
from lora_contract.roles import Visibility
from lora_contract.wire.access import NamespaceList, NamespaceView, QuotaRequest, Usage
from lora_registry.access import store
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import absent, may_read
from lora_registry.db.tables import Namespace
from lora_registry.events import audit
from lora_registry.jobs import quota
from lora_registry.jobs.engine.ended import EngineRows
from lora_registry.runtime import paging
from lora_registry.runtime.clock import iso, now


def list_all(
    session: Session, engine: EngineRows, principal: Principal, *, cursor: str | None, limit: int
) -> NamespaceList:
    """List readable namespaces by name."""
    after = paging.decode(cursor, str)
    rows = store.namespaces(session, principal.visible(), after=after[0] if after else None, limit=limit)
    return NamespaceList(
        items=_views(session, engine, principal, rows),
        next_cursor=paging.encode(rows[-1].name) if len(rows) == limit else None,
    )


def show(session: Session, engine: EngineRows, principal: Principal, name: str) -> NamespaceView:
    """Show a namespace. Raises `not-found` also if the caller may not read it."""
    name = reference.check_namespace(name)
    row = store.namespace(session, name)
    if row is None or not may_read(session, principal, name):
        raise absent(principal, f"There is no namespace {name!r} that you may read.", hint=_HINT)
    return _views(session, engine, principal, [row])[0]


def set_visibility(
    session: Session, engine: EngineRows, principal: Principal, name: str, visibility: Visibility
) -> NamespaceView:
    """Set who may read a namespace, which need not have a repository yet. The caller must be its administrator."""
    if store.namespace(session, name) is None:
        reference.check_new_namespace(name)
    row = store.lock_namespace(session, name, now())
    if row.visibility != visibility:
        audit.record(
            session,
            "visibility-set",
            principal=principal,
            namespace=name,
            subject=name,
            visibility=visibility,
            before=row.visibility,
        )
        row.visibility = visibility
        session.add(row)
        session.flush()
    return _views(session, engine, principal, [row])[0]


def set_quota(
    session: Session, engine: EngineRows, principal: Principal, name: str, most: QuotaRequest
) -> NamespaceView:
    """Set how much a namespace may hold, and how many jobs it may have at once."""
    if store.namespace(session, name) is None:
        reference.check_new_namespace(name)
    row = store.lock_namespace(session, name, now())
    if (row.max_bytes, row.max_versions, row.max_jobs) != (most.max_bytes, most.max_versions, most.max_jobs):
        audit.record(
            session,
            "quota-set",
            principal=principal,
            namespace=name,
            subject=name,
            max_bytes=most.max_bytes,
            max_versions=most.max_versions,
            max_jobs=most.max_jobs,
        )
        row.max_bytes, row.max_versions, row.max_jobs = most.max_bytes, most.max_versions, most.max_jobs
        session.add(row)
        session.flush()
    return _views(session, engine, principal, [row])[0]


def _views(
    session: Session, engine: EngineRows, principal: Principal, rows: Sequence[Namespace]
) -> list[NamespaceView]:
    granted = [row.name for row in rows if principal.may("reader", row.name)]
    jobs = quota.counts(session, engine, granted) if granted else {}
    return [_view(principal, row, jobs.get(row.name)) for row in rows]


def _view(principal: Principal, row: Namespace, jobs: int | None) -> NamespaceView:
    """jobs: None if the caller has no role there."""
    if jobs is None:
        return NamespaceView(row.name, row.visibility, iso(row.created_at))  # type: ignore[arg-type]
    usage = Usage(
        bytes=row.bytes,
        versions=row.versions,
        max_bytes=row.max_bytes,
        max_versions=row.max_versions,
        jobs=jobs,
        max_jobs=row.max_jobs,
    )
    role = principal.role_in(row.name)
    return NamespaceView(row.name, row.visibility, iso(row.created_at), role, usage)  # type: ignore[arg-type]


_HINT = "List them with `lora-reg namespace list`."
