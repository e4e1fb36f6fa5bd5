"""Leases of job workers."""

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
