"""Keep records for the time that the settings state: export and remove old ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sqlmodel import Session

from lora_registry.context import Context
from lora_registry.db.dialect import database_now
from lora_registry.http import idempotency
from lora_registry.keeping import exports
from lora_registry.keeping.exports import Exported, Tick, microseconds
from lora_registry.keeping.old_records import DECISIONS, EVENTS, JOBS, REPORTS
from lora_registry.storage import open_records

BATCH: Final = 200

# Decisions before the reports that they name, and jobs before theirs.
_KINDS: Final = (
    (EVENTS, "keep_events_days"),
    (DECISIONS, "keep_decisions_days"),
    (JOBS, "keep_jobs_days"),
    (REPORTS, "keep_reports_days"),
)


@dataclass(slots=True)
class Kept:
    """What was exported and removed. progress: jobs whose progress was removed. idempotency: records."""

    files: list[Exported] = field(default_factory=list)
    progress: int = 0
    idempotency: int = 0

    @property
    def removed(self) -> int:
        return sum(file.removed for file in self.files) + self.progress + self.idempotency


def keep(ctx: Context, *, tick: Tick = lambda: True) -> Kept:
    """Export and remove what is older than the settings say. Each transaction is short."""
    done = Kept()
    settings = ctx.settings
    files = open_records(settings)
    for kind, setting in _KINDS:
        if days := getattr(settings, setting):
            done.files += exports.export(ctx, files, kind, days=days, tick=tick)
    done.progress = _remove(ctx, settings.keep_progress_days, _progress(ctx), tick)
    done.idempotency = _remove(ctx, settings.keep_idempotency_days, _idempotency, tick)
    return done


def due(ctx: Context) -> dict[str, int]:
    """Count, by kind, what `keep` would export and remove now."""
    settings = ctx.settings
    return {
        kind.name: exports.count(ctx, kind, days=days)
        for kind, setting in _KINDS
        if (days := getattr(settings, setting))
    }


Remove = Callable[[Session, int], int]


def _progress(ctx: Context) -> Remove:
    def remove(session: Session, before: int) -> int:
        return ctx.jobs.rows.remove_progress(session, before=before, limit=BATCH)

    return remove


def _idempotency(session: Session, before: int) -> int:
    return idempotency.forget(session, before=before, limit=BATCH)


def _remove(ctx: Context, days: float, remove: Remove, tick: Tick) -> int:
    total = 0
    while days and tick():
        with ctx.db.write() as session:
            removed = remove(session, database_now(session) - microseconds(days))
        total += removed
        if removed < BATCH:
            break
    return total
