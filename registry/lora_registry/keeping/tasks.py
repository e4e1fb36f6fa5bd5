"""The periodic tasks, garbage collection and verification. One process at a time does each."""

from __future__ import annotations

import logging
from collections.abc import Callable

from lora_registry.context import Context
from lora_registry.keeping import collect, fsck, lease, orphans, records
from lora_registry.keeping.collect import Collected
from lora_registry.keeping.records import Kept

log = logging.getLogger(__name__)


def collect_garbage(ctx: Context, *, grace: float, dry_run: bool = False, every: float = 0.0) -> Collected | None:
    """Collect garbage. Return None if another process does, or did less than `every` seconds ago."""
    if dry_run:
        result = collect.collect(ctx, grace=grace, dry_run=True)
        orphans.sweep(ctx, result, grace=ctx.settings.gc_orphan_seconds, dry_run=True)
        return result
    claimed = lease.claim(ctx.db.engine, "gc", every=every)
    if claimed is None:
        return None
    done = False
    try:
        result = collect.collect(ctx, grace=grace, tick=claimed.renew)
        # Listing a large store takes long, and what nobody names hurts nobody.
        listing = lease.claim(ctx.db.engine, "orphans", every=min(ctx.settings.gc_orphan_seconds / 4, 24 * 3600.0))
        if listing is not None:
            orphans.sweep(ctx, result, grace=ctx.settings.gc_orphan_seconds, dry_run=False, tick=listing.renew)
            listing.release(done=True)
        done = True
    finally:
        claimed.release(done=done)
    if result.removed or result.orphans or result.failed:
        log.info(
            "Garbage: %s blobs (%s bytes) and %s left over objects (%s bytes) removed, %s condemned, %s failed.",
            *(result.removed, result.removed_bytes, result.orphans, result.orphan_bytes),
            *(result.condemned, result.failed),
        )
    return result


def once(ctx: Context, name: str, *, every: float, work: Callable[[Context], int]) -> None:
    """Do a short task, unless another process does or did less than `every` seconds ago."""
    claimed = lease.claim(ctx.db.engine, name, every=every)
    if claimed is None:
        return
    done = False
    try:
        if number := work(ctx):
            log.info("%s: %s.", name, number)
        done = True
    finally:
        claimed.release(done=done)


def keep_records(ctx: Context, *, every: float = 0.0) -> Kept | None:
    """Export and remove old records. Return None if another process does, or did less than `every` seconds ago."""
    claimed = lease.claim(ctx.db.engine, "records", every=every)
    if claimed is None:
        return None
    done = False
    try:
        result = records.keep(ctx, tick=claimed.renew)
        done = True
    finally:
        claimed.release(done=done)
    return result


def verify_oldest(ctx: Context) -> int | None:
    """Verify the blobs that were verified longest ago, as many as the settings allow. Return the number of damaged
    ones; None if another process verifies, or did recently."""
    settings = ctx.settings
    claimed = lease.claim(ctx.db.engine, "fsck", every=settings.fsck_seconds)
    if claimed is None:
        return None
    damaged, done = 0, False
    try:
        for found in fsck.check_oldest(ctx, budget=settings.fsck_bytes, rate=settings.fsck_rate * 1e6):
            damaged += found.problem is not None
            if not claimed.renew():
                break
        done = True
    finally:
        claimed.release(done=done)
    if damaged:
        log.error("%s stored blobs are damaged or missing; `lora-registry fsck` lists them.", damaged)
    return damaged
