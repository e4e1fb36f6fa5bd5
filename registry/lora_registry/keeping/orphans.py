"""Objects that no blob's row names: of uploads and jobs that have not committed yet, and what dead processes left.

An object is removed only if it was seen without a row for longer than any upload or job takes. Its address is then
doomed for good: whoever stored it late is told so when they want to refer to it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlmodel import Session, col, select

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.blobs.keys import address
from lora_registry.context import Context
from lora_registry.db.dialect import database_now, insert_ignore
from lora_registry.db.tables import Blob, Orphan
from lora_registry.keeping import store
from lora_registry.keeping.collect import BATCH, Collected, Tick
from lora_registry.runtime.faults import fault_point

log = logging.getLogger(__name__)


def sweep(ctx: Context, result: Collected, *, grace: float, dry_run: bool, tick: Tick = lambda: True) -> None:
    """List the store; note the objects without a row, and remove those that were noted `grace` seconds ago."""
    batch: list[tuple[Digest, int]] = []
    for item in ctx.blobs.list():
        batch.append(item)
        if len(batch) == BATCH:
            if not tick():
                return
            _sweep(ctx, batch, result, grace=grace, dry_run=dry_run)
            batch = []
    _sweep(ctx, batch, result, grace=grace, dry_run=dry_run)


def _sweep(
    ctx: Context, batch: Sequence[tuple[Digest, int]], result: Collected, *, grace: float, dry_run: bool
) -> None:
    with ctx.db.read() as session:
        left = _without_row(session, batch)
        noted = {(row.digest, row.life) for row in _rows(session, left)}
        due = _due(session, left, grace)
    if dry_run:
        result.orphans += len(due)
        result.orphan_bytes += sum(row.size for row in due)
        return
    new = [(where, size) for where, size in left if _key(where) not in noted]
    if new:
        with ctx.db.write() as session:
            _note(session, new)
    for row in due:
        where = address(Digest.parse(row.digest), row.life)
        if not row.doomed and not _doom(ctx, row):
            continue
        fault_point("gc.orphan")
        try:
            ctx.blobs.delete(where)
        except RegistryError as error:
            result.failed += 1
            log.warning("The left over object of %s could not be removed: %s", where, error.detail)
            continue
        result.orphans += 1
        result.orphan_bytes += row.size
        log.info("The object %s (%s bytes) was removed: no blob's row named it.", where, row.size)


def _doom(ctx: Context, row: Orphan) -> bool:
    """Forbid references to an object. Return False if its address got a row meanwhile."""
    with ctx.db.write() as session:
        # A plain key is never used again after this, since the row says that the content is, or was, known. The blob's
        # row is locked first, as whoever records an object does.
        store.declare(session, {row.digest: row.size})
        blob = store.lock(session, [row.digest])[row.digest]
        query = select(Orphan).where(Orphan.digest == row.digest, Orphan.life == row.life)
        current = session.exec(query.with_for_update(skip_locked=True)).first()
        if current is None:
            return False
        if blob.life == row.life and blob.state in store.KEPT:
            session.delete(current)
            return False
        current.doomed = True
        session.add(current)
    return True


def _without_row(session: Session, batch: Sequence[tuple[Digest, int]]) -> list[tuple[Digest, int]]:
    rows = store.blobs(session, [str(where) for where, _ in batch])
    return [(where, size) for where, size in batch if not _is_named(rows.get(str(where)), where)]


def _is_named(row: Blob | None, where: Digest) -> bool:
    """`deleting`: the collector removes it itself."""
    return row is not None and row.state != "absent" and store.place(row) == where


def _rows(session: Session, left: Sequence[tuple[Digest, int]]) -> list[Orphan]:
    keys = {_key(where) for where, _ in left}
    rows = session.exec(select(Orphan).where(col(Orphan.digest).in_({digest for digest, _ in keys})))
    return [row for row in rows if (row.digest, row.life) in keys]


def _due(session: Session, left: Sequence[tuple[Digest, int]], grace: float) -> list[Orphan]:
    limit = database_now(session) - int(grace * 1_000_000)
    return [row for row in _rows(session, left) if row.doomed or row.first_seen_at <= limit]


def _note(session: Session, left: Sequence[tuple[Digest, int]]) -> None:
    at = database_now(session)
    for where, size in sorted(left, key=lambda item: _key(item[0])):
        digest, life = _key(where)
        values = {"digest": digest, "life": life, "size": size, "first_seen_at": at, "doomed": False}
        session.execute(insert_ignore(session, Orphan).values(**values))


def _key(where: Digest) -> tuple[str, str]:
    return str(where), getattr(where, "life", "")
