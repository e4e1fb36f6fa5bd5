"""Old records are written to files of JSON lines, read back, and only then removed.

An export is planned in the database: which records, in which file. A process that dies in between leaves a plan, which
the next one carries out: the same records in the same file. All times are the database's.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
from sqlmodel import col, delete, func, insert, select

from lora_contract.errors import RegistryError
from lora_registry.blobs.files import Files
from lora_registry.context import Context
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import RecordDue, RecordExport
from lora_registry.keeping.old_records import Cutoff, Key, RecordKind
from lora_registry.runtime.faults import fault_point

BATCH: Final = 500
log = logging.getLogger(__name__)

Tick = Callable[[], bool]
"""Called between batches; False: stop, another process has taken over."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written; removed: how many of its records were removed from the database."""

    kind: str
    file: str
    records: int
    removed: int


def export(ctx: Context, files: Files, kind: RecordKind, *, days: float, tick: Tick) -> Iterator[Exported]:
    """Export and remove the records of a kind that are older than `days`."""
    with ctx.db.read() as session:
        cutoff = Cutoff(database_now(session) - microseconds(days), ctx.jobs.rows)
    while tick():
        plan = _plan(ctx, kind, cutoff)
        if plan is None:
            return
        done = _carry_out(ctx, files, kind, cutoff, plan)
        log.info("Records: %s of %s %s removed, in %s.", done.removed, done.records, kind.name, done.file)
        yield done
        if done.removed < done.records:
            return  # others hold the rest, or need it now; the next run looks again


def count(ctx: Context, kind: RecordKind, *, days: float) -> int:
    """Count the records that would be exported and removed now."""
    with ctx.db.read() as session:
        cutoff = Cutoff(database_now(session) - microseconds(days), ctx.jobs.rows)
        due = kind.due(cutoff).order_by(None).subquery()
        return int(session.execute(select(func.count()).select_from(due)).scalar_one())


def _plan(ctx: Context, kind: RecordKind, cutoff: Cutoff) -> RecordExport | None:
    """Return the plan that a process left, or a new one; None if nothing is due."""
    with ctx.db.write() as session:
        left = select(RecordExport).where(RecordExport.kind == kind.name, col(RecordExport.done_at).is_(None))
        plan = session.exec(left.order_by(col(RecordExport.id)).limit(1)).first()
        if plan is not None:
            return plan
        due = session.execute(kind.due(cutoff).limit(BATCH)).all()
        if not due:
            return None
        times = [at for _, at in due]
        plan = RecordExport(
            kind=kind.name,
            records=len(due),
            first_at=min(times),
            last_at=max(times),
            last_id=due[-1][0] if kind.name == "events" else None,
            created_at=database_now(session),
        )
        session.add(plan)
        session.flush()
        rows = [{"kind": kind.name, "record_id": str(key), "export_id": plan.id} for key, _ in due]
        session.execute(insert(RecordDue), rows)
    fault_point("records.planned")
    return plan


def _carry_out(ctx: Context, files: Files, kind: RecordKind, cutoff: Cutoff, plan: RecordExport) -> Exported:
    with ctx.db.read() as session:
        due = select(RecordDue.record_id).where(RecordDue.export_id == plan.id)
        keys: list[Key] = [kind.key(key) for key in session.exec(due)]
        rows = kind.rows(session, cutoff, keys)
    data = b"".join(msgspec.json.encode(row, order="deterministic") + b"\n" for row in rows)
    sha256 = hashlib.sha256(data).hexdigest()
    name = _name(plan, sha256)
    _write(files, name, data, sha256)
    fault_point("records.written")
    with ctx.db.write() as session:
        current = session.exec(select(RecordExport).where(RecordExport.id == plan.id).with_for_update()).one()
        if current.done_at is not None:
            return Exported(kind.name, name, len(rows), 0)
        current.file, current.sha256 = name, sha256
        session.add(current)
        session.flush()  # the database refuses to remove decisions and reports before this
        removed = kind.remove(session, cutoff, keys)
        session.exec(delete(RecordDue).where(col(RecordDue.export_id) == plan.id))
        current.done_at = database_now(session)
        session.add(current)
        session.flush()
        fault_point("records.removed")
    return Exported(kind.name, name, len(rows), removed)


def _write(files: Files, name: str, data: bytes, sha256: str) -> None:
    """Write a file, and read it back. Raises RegistryError `storage-unavailable` if it is not what was written."""
    files.write(name, [data])
    found = hashlib.sha256()
    for chunk in files.read(name):
        found.update(chunk)
    if found.hexdigest() != sha256:
        raise RegistryError(
            "storage-unavailable",
            f"The exported file {name} reads back with the sha256 {found.hexdigest()[:12]}; expected {sha256[:12]}.",
            hint="Check the store; nothing was removed from the database.",
        )


def _name(plan: RecordExport, sha256: str) -> str:
    """The same records give the same name, and others never."""
    span = "-".join(f"{datetime.fromtimestamp(at / 1e6, UTC):%Y%m%dT%H%M%SZ}" for at in (plan.first_at, plan.last_at))
    return f"{plan.kind}/{span}-{plan.id:08}-{sha256[:12]}.jsonl"


def microseconds(days: float) -> int:
    return int(days * 24 * 3600 * 1_000_000)
