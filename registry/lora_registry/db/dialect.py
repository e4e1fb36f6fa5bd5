"""SQL that differs between SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, literal_column, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel

_NOW = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)",
    "postgresql": "CAST(extract(epoch from clock_timestamp()) * 1000000 AS BIGINT)",
}


def insert(bind: Engine | Connection, table: type[SQLModel]) -> Any:
    """Return the database's own INSERT, which has `on_conflict_do_update`."""
    return (postgresql if bind.dialect.name == "postgresql" else sqlite).insert(table)


def insert_ignore(session: Session, table: type[SQLModel]) -> Any:
    """`INSERT … ON CONFLICT DO NOTHING`: no error and no aborted transaction if the row exists."""
    return insert(session.get_bind(), table).on_conflict_do_nothing()


def now_sql(bind: Engine | Connection) -> ColumnElement[int]:
    """Return the database's clock as an expression, in microseconds: the clocks of our machines differ."""
    return literal_column(_NOW[bind.dialect.name], BigInteger)


def database_now(session: Session) -> int:
    """Read the database's clock, in microseconds since the epoch."""
    at: int = session.execute(select(now_sql(session.get_bind()))).scalar_one()
    return at
