"""Leases of periodic tasks: one process at a time does them, and not more often than the settings ask.

Raises RegistryError `unavailable` if the database is away.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Engine, update
from sqlmodel import col

from lora_registry.db.dialect import insert, now_sql
from lora_registry.db.engine import autocommitting
from lora_registry.db.session import raising_unavailable
from lora_registry.db.tables import TaskLease
from lora_registry.runtime.clock import new_id

SECONDS: Final = 300.0
"""A process that has not renewed its lease for so long is considered dead; its task is idempotent."""

_MICRO: Final = 1_000_000


class Lease:
    """A claimed task. `renew` it in the middle of long work, `release` it in the end."""

    def __init__(self, engine: Engine, name: str, holder: str, seconds: float = SECONDS) -> None:
        self._engine = autocommitting(engine)
        self._name = name
        self._holder = holder
        self._micro = int(seconds * _MICRO)

    def renew(self) -> bool:
        """Return False if another process has taken the task over: stop."""
        return self._set(expires_at=now_sql(self._engine) + self._micro)

    def release(self, *, done: bool) -> None:
        """Free the task. done: it was done, so it is not due again before its interval has passed."""
        self._set(expires_at=0, **({"done_at": now_sql(self._engine)} if done else {}))

    def _set(self, **values: object) -> bool:
        statement = (
            update(TaskLease)
            .where(col(TaskLease.name) == self._name, col(TaskLease.holder) == self._holder)
            .values(**values)
            .returning(col(TaskLease.name))
        )
        with raising_unavailable(), self._engine.connect() as connection:
            return connection.execute(statement).first() is not None


def claim(
    engine: Engine, name: str, *, every: float = 0.0, seconds: float = SECONDS, holder: str | None = None
) -> Lease | None:
    """Claim a task. Return None if another process does it, or if it was done less than `every` seconds ago.

    Args:
        engine: of the database.
        name: of the task.
        every: its interval.
        seconds: lifetime of the lease without a renewal.
        holder: who claims it, and has it still if it claimed it before; None: a new one.
    """
    holder = holder or new_id()
    now = now_sql(engine)
    values = {"holder": holder, "expires_at": now + int(seconds * _MICRO)}
    lapsed = (col(TaskLease.expires_at) < now) | (col(TaskLease.holder) == holder)
    free = lapsed & (col(TaskLease.done_at) + int(every * _MICRO) <= now)
    statement = (
        insert(engine, TaskLease)
        .values(name=name, done_at=0, **values)
        .on_conflict_do_update(index_elements=[col(TaskLease.name)], set_=values, where=free)
        .returning(col(TaskLease.name))
    )
    with raising_unavailable(), autocommitting(engine).connect() as connection:
        claimed = connection.execute(statement).first() is not None
    return Lease(engine, name, holder, seconds) if claimed else None
