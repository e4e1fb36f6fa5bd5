"""Garbage collection beside pushes: no lock on the service, no read-only mode.

A blob that nothing refers to is condemned; once it was condemned for the grace period, its row is locked, references
are looked for again, and its state becomes `deleting`. Then the object is removed, then the state becomes `absent`. A
collector that dies in between leaves rows in `deleting`, which the next one finishes. All times are the database's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_registry.auth.principals import WORKER
from lora_registry.context import Context
from lora_registry.db.tables import Blob
from lora_registry.events import audit
from lora_registry.keeping import references, store
from lora_registry.runtime.faults import fault_point

BATCH: Final = 200
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Collected:
    """What a collection did, or in a dry run would do. Sizes are in bytes.

    condemned: blobs that are removed after the grace period unless something refers to them. failed: objects that the
    store did not remove; the next collection tries again.
    """

    condemned: int = 0
    removed: int = 0
    removed_bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    failed: int = 0


Tick = Callable[[], bool]
"""Called after each batch; False: stop, another collector has taken over."""


def collect(ctx: Context, *, grace: float, dry_run: bool = False, tick: Tick = lambda: True) -> Collected:
    """Condemn what nothing refers to, and remove what was condemned `grace` seconds ago."""
    result = Collected()
    if dry_run:
        _preview(ctx, result, grace)
        return result
    _finish_deleting(ctx, result)
    _condemn(ctx, result, tick)
    after = ""
    while tick():
        with ctx.db.read() as session:
            due = references.due(session, grace=_micro(grace), after=after, limit=BATCH)
        if not due:
            break
        after = due[-1].digest
        remove(ctx, [row.digest for row in due], result)
    return result


def purge(ctx: Context, digests: Sequence[str], *, reason: str) -> Collected:
    """Remove those of these blobs that no live version needs, at once. reason: recorded with the removal."""
    result = Collected()
    for begin in range(0, len(digests), BATCH):
        remove(ctx, digests[begin : begin + BATCH], result, reason=reason)
    return result


def remove(ctx: Context, digests: Sequence[str], result: Collected, *, reason: str | None = None) -> None:
    """Remove those of these blobs that nothing refers to. reason: of a purge, which ignores upload sessions."""
    fault_point("gc.due")
    with ctx.db.write() as session:
        doomed = references.unreferenced(session, digests, purge=reason is not None)
        fault_point("gc.locked")
        for row in doomed:
            row.state = "deleting"
            session.add(row)
        session.flush()
        _tell(session, doomed, reason or "unreferenced")
    fault_point("gc.deleting")
    for row in doomed:
        _remove_object(ctx, row, result)


def _condemn(ctx: Context, result: Collected, tick: Tick) -> None:
    for condemned in (True, False):
        after = ""
        while True:
            with ctx.db.read() as session:
                digests = references.changed_after(session, after, BATCH, condemned=condemned)
            if not digests or not tick():
                break
            after = digests[-1]
            with ctx.db.write() as session:
                if condemned:
                    references.pardon(session, digests)
                else:
                    result.condemned += references.condemn(session, digests)


def _finish_deleting(ctx: Context, result: Collected) -> None:
    """Finish what a collector that died has begun; objects that cannot be removed are left for the next time."""
    with ctx.db.read() as session:
        rows = references.deleting(session, 10 * BATCH)
    for row in rows:
        _remove_object(ctx, row, result)


def _remove_object(ctx: Context, row: Blob, result: Collected) -> None:
    where = store.place(row)
    try:
        fault_point("gc.object")
        ctx.blobs.delete(where)
    except RegistryError as error:
        result.failed += 1
        log.warning("The object of %s could not be removed: %s", where, error.detail)
        return
    fault_point("gc.removed")
    with ctx.db.write() as session:
        references.set_absent(session, row.digest, row.life)
    result.removed += 1
    result.removed_bytes += row.size
    log.info("The blob %s (%s bytes) was removed: nothing referred to it.", where, row.size)


def _tell(session: Session, rows: Sequence[Blob], reason: str) -> None:
    """Record what goes, in each namespace whose versions had it."""
    sizes = {row.digest: row.size for row in rows}
    for namespace, digests in references.namespaces(session, sizes).items():
        audit.record(
            session,
            "blobs-removed",
            principal=WORKER,
            namespace=namespace,
            subject=namespace,
            reason=reason,
            digests=digests,
            bytes=sum(sizes[digest] for digest in digests),
        )


def _preview(ctx: Context, result: Collected, grace: float) -> None:
    after = ""
    while True:
        with ctx.db.read() as session:
            digests = references.changed_after(session, after, BATCH, condemned=False)
        if not digests:
            break
        after = digests[-1]
        result.condemned += len(digests)
    after = ""
    while True:
        with ctx.db.read() as session:
            due = references.due(session, grace=_micro(grace), after=after, limit=BATCH)
            kept = references.referenced(session, [row.digest for row in due])
        if not due:
            break
        after = due[-1].digest
        rows = [row for row in due if row.digest not in kept]
        result.removed += len(rows)
        result.removed_bytes += sum(row.size for row in rows)


def _micro(seconds: float) -> int:
    return int(seconds * 1_000_000)
