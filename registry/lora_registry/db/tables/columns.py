"""Column types for both databases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Integer, MetaData
from sqlmodel import Field, SQLModel

# Constraints need the same names on both databases, or Alembic cannot alter them.
SQLModel.metadata.naming_convention = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
).naming_convention

BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite assigns row ids only to INTEGER keys


def row_id() -> Any:
    """A primary key assigned by the database. It is an `int` in rows that were read or flushed, so the column is
    declared `id: int`, like SQLAlchemy's `Mapped[int]`."""
    return Field(default=None, primary_key=True, sa_type=BigId)


def foreign_key(target: str, *, nullable: bool = False, index: bool = False, primary_key: bool = False) -> Any:
    default = None if nullable else ...
    return Field(default, foreign_key=target, nullable=nullable, index=index, primary_key=primary_key, sa_type=BigId)


def big_int(*, nullable: bool = False, index: bool = False, default: int | None = None) -> Any:
    """A 64-bit integer column, for times in microseconds and sizes in bytes. default: also that of the database."""
    server = {} if default is None else {"server_default": str(default)}
    first = default if default is not None else None if nullable else ...
    return Field(first, sa_type=BigInteger, nullable=nullable, index=index, sa_column_kwargs=server)
