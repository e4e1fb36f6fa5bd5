"""SQL of the worker leases. All times are the database's own.

Each write is one autocommitted statement: a worker that freezes during a heartbeat must not hold the lock of its row,
which the workers that take over its jobs wait for.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, delete, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlmodel import SQLModel, col

from lora_registry.db.dialect import insert, now_sql
from lora_registry.db.engine import autocommitting
from lora_registry.db.tables.jobs import WorkerLease
from lora_registry.runtime.faults import fault_point

_executor: InstrumentedAttribute[str] = col(WorkerLease.executor_id)  # type: ignore[assignment]
_instance: InstrumentedAttribute[str] = col(WorkerLease.instance)  # type: ignore[assignment]
_beat: InstrumentedAttribute[int] = col(WorkerLease.beat_at)  # type: ignore[assignment]
_lease: InstrumentedAttribute[int] = col(WorkerLease.lease_us)  # type: ignore[assignment]


def _read_connection(engine: Engine) -> Connection:
    # Runs once a second in every worker: it must not wait for SQLite's write lock.
    return engine.execution_options(read_only=True).connect()


def claim(engine: Engine, *, executor_id: str, instance: str, host: str, queues: str, lease_seconds: float) -> bool:
    """Claim the lease if it is free, expired or already held by `instance`. Return False if another one holds it."""
    values: dict[str, Any] = {
        "instance": instance,
        "host": host,
        "queues": queues,
        "beat_at": now_sql(engine),
        "lease_us": int(lease_seconds * 1_000_000),
    }
    statement = (
        insert(engine, WorkerLease)
        .values(executor_id=executor_id, **values)
        .on_conflict_do_update(
            index_elements=[_executor],
            set_=values,
            where=(_instance == instance) | (_beat + _lease < now_sql(engine)),
        )
        .returning(_executor)
    )
    with autocommitting(engine).connect() as connection:
        return connection.execute(statement).first() is not None


def beat(engine: Engine, *, executor_id: str, instance: str) -> bool:
    """Renew the lease. Return False if the row is missing or another instance's: this worker's jobs were requeued."""
    statement = (
        update(WorkerLease).where(_executor == executor_id, _instance == instance).values(beat_at=now_sql(engine))
    )
    with autocommitting(engine).connect() as connection:
        renewed = connection.execute(statement).rowcount == 1
        fault_point("jobs.lease.renewed")
        return renewed


def release(engine: Engine, *, executor_id: str, instance: str) -> None:
    """Release the lease, so that other workers need not wait until it expires."""
    with autocommitting(engine).connect() as connection:
        connection.execute(delete(WorkerLease).where(_executor == executor_id, _instance == instance))


def drop_expired(engine: Engine, *, exclude: str) -> list[str]:
    """Delete the expired leases other than that of `exclude`; return the executor ids of their workers.

    A worker that was suspended past its lease detects by the missing row that it lost its jobs.
    """
    expired = (_beat + _lease < now_sql(engine)) & (_executor != exclude)
    with _read_connection(engine) as connection:
        found = connection.execute(select(func.count()).select_from(WorkerLease).where(expired)).scalar_one()
    if not found:
        return []
    with autocommitting(engine).connect() as connection:
        return list(connection.execute(delete(WorkerLease).where(expired).returning(_executor)).scalars())


def holders(engine: Engine) -> set[str]:
    """Return the executor ids that have a lease."""
    with _read_connection(engine) as connection:
        return set(connection.execute(select(_executor)).scalars())


def served_queues(session: Session) -> set[str]:
    """Return the queues that live workers serve."""
    alive = select(col(WorkerLease.queues)).where(_beat + _lease >= now_sql(session.get_bind()))
    return {queue for queues in session.execute(alive).scalars() for queue in queues.split(",")}


def create_table(engine: Engine) -> None:
    """Create the lease table if it is missing (for tests and tools without Alembic)."""
    SQLModel.metadata.create_all(engine, tables=[SQLModel.metadata.tables[WorkerLease.__tablename__]])
