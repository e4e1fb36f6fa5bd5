"""Column types that both databases share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Integer, MetaData
from sqlmodel import Field, SQLModel

# Constraints need names that are the same on both databases, or Alembic cannot alter them.
SQLModel.metadata.naming_convention = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
).naming_convention

BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite gives row ids to INTEGER keys only


def row_id() -> Any:
    """A primary key that the database gives: an `int` in every row that was read, and after a flush in one that was
    added. So the column is declared `id: int`, as SQLAlchemy's own `Mapped[int]` is."""
    return Field(default=None, primary_key=True, sa_type=BigId)


def foreign(target: str, *, nullable: bool = False, index: bool = False, primary_key: bool = False) -> Any:
    default = None if nullable else ...
    return Field(default, foreign_key=target, nullable=nullable, index=index, primary_key=primary_key, sa_type=BigId)


def moment(*, nullable: bool = False, index: bool = False) -> Any:
    """Microseconds since the epoch."""
    return Field(None if nullable else ..., sa_type=BigInteger, nullable=nullable, index=index)
