"""Leases of job workers, and of tasks that one process at a time does."""

from __future__ import annotations

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel


class WorkerLease(SQLModel, table=True):
    """One live worker process. A worker without a row, or with an expired one, is considered dead.

    Times are microseconds of the database's clock, since workers' clocks differ. A lease expires `lease_us` after
    `beat_at`; the worker sets this duration, so workers may have different settings.
    """

    __tablename__ = "worker_lease"

    executor_id: str = Field(primary_key=True, max_length=255)
    instance: str = Field(max_length=36)
    host: str = Field(max_length=255)
    queues: str = Field(max_length=1024)
    beat_at: int = Field(sa_type=BigInteger)
    lease_us: int = Field(sa_type=BigInteger)


class TaskLease(SQLModel, table=True):
    """A periodic task, such as the collection of garbage. Times are microseconds of the database's clock.

    holder: the process that does it until `expires_at`. done_at: when it was last done.
    """

    __tablename__ = "task_lease"

    name: str = Field(primary_key=True, max_length=32)
    holder: str = Field(default="", max_length=64)
    expires_at: int = Field(default=0, sa_type=BigInteger)
    done_at: int = Field(default=0, sa_type=BigInteger)
