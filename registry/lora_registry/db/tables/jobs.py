"""The lease that every job worker holds while it lives."""

from __future__ import annotations

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel


class WorkerLease(SQLModel, table=True):
    """One live worker process. Whoever has no row, or an expired one, is dead and its jobs are given to others.

    Times are microseconds by the database's clock, since workers' clocks differ. A lease ends `lease_us` after
    `beat_at`: the holder says how long its silence means nothing, so that workers may be set differently.
    """

    __tablename__ = "worker_lease"

    executor_id: str = Field(primary_key=True, max_length=255)
    instance: str = Field(max_length=36)
    host: str = Field(max_length=255)
    queues: str = Field(max_length=1024)
    beat_at: int = Field(sa_type=BigInteger)
    lease_us: int = Field(sa_type=BigInteger)
