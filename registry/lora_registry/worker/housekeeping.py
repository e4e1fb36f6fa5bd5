"""Housekeeping beside jobs: remove expired uploads and leftovers of killed processes, collect garbage, export old
records, verify blobs.

Every worker does it: removals are idempotent, and of the other tasks one process at a time takes each.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, NoReturn

from lora_contract.errors import RegistryError
from lora_registry.context import Context
from lora_registry.hub import heads
from lora_registry.keeping import tasks
from lora_registry.push import sessions
from lora_registry.repositories import retention
from lora_registry.worker import scratch

INTERVAL_SECONDS: Final = 600.0
VERIFY_AFTER_SECONDS: Final = 120.0
"""A worker that has just started has better things to do."""

log = logging.getLogger(__name__)


def start(ctx: Context) -> None:
    """Start housekeeping in two daemon threads: verifying takes long, and nothing else waits for it."""
    settings = ctx.settings
    _start("housekeeping", 0.0, settings.gc_seconds, lambda: _clean(ctx))
    if settings.fsck_seconds:
        _start("verification", VERIFY_AFTER_SECONDS, settings.fsck_seconds, lambda: _verify(ctx))


def _start(name: str, delay: float, interval: float, work: Callable[[], None]) -> None:
    pause = min(INTERVAL_SECONDS, interval or INTERVAL_SECONDS)
    threading.Thread(target=_repeat, args=(name, work, min(delay, pause), pause), name=name, daemon=True).start()


def _repeat(name: str, work: Callable[[], None], delay: float, seconds: float) -> NoReturn:
    pause = threading.Event()
    pause.wait(delay)
    while True:
        try:
            work()
        except Exception:
            # Nobody would start this thread again, and nothing would be removed any more.
            log.exception("The %s failed and will be repeated.", name)
        pause.wait(seconds)


def _clean(ctx: Context) -> None:
    try:
        removed = sessions.sweep(ctx) + heads.sweep(ctx)
        # One hour after the session expires: a client that is still sending has lost the session anyway.
        ctx.blobs.sweep(older_than=ctx.settings.upload_seconds + 3600)
        scratch.sweep(ctx.settings.data)
        if ctx.settings.gc_seconds:
            tasks.once(ctx, "retention", every=ctx.settings.gc_seconds, work=retention.apply)
            tasks.collect_garbage(ctx, grace=ctx.settings.gc_grace_seconds, every=ctx.settings.gc_seconds)
            tasks.keep_records(ctx, every=ctx.settings.gc_seconds)
    except RegistryError as error:
        log.warning("Expired uploads, garbage or old records could not be removed: %s", error.detail)
    except OSError as error:
        log.warning("Scratch folders could not be removed: %s", error.strerror)
    else:
        if removed:
            log.info("%s expired uploads were removed.", removed)


def _verify(ctx: Context) -> None:
    try:
        tasks.verify_oldest(ctx)
    except RegistryError as error:
        log.warning("Stored blobs could not be verified: %s", error.detail)
