"""Exports of old records: what was written to a file, and may be removed."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int, foreign_key, row_id


class RecordExport(SQLModel, table=True):
    """A file of old records, planned before it is written, so that a repeated export writes the same one.

    records: how many were planned. last_id: of events. file, sha256: once it was written and read back. done_at: when
    the records were removed.
    """

    __tablename__ = "record_export"

    id: int = row_id()
    kind: str = Field(max_length=16, index=True)
    records: int
    first_at: int = big_int()
    last_at: int = big_int()
    last_id: int | None = big_int(nullable=True)
    file: str | None = Field(default=None, max_length=255)
    sha256: str | None = Field(default=None, max_length=64)
    created_at: int = big_int()
    done_at: int | None = big_int(nullable=True)


class RecordDue(SQLModel, table=True):
    """A record of an export that is not done. The database refuses to remove a report or a decision without it."""

    __tablename__ = "record_due"

    kind: str = Field(primary_key=True, max_length=16)
    record_id: str = Field(primary_key=True, max_length=160)
    export_id: int = foreign_key("record_export.id", index=True)
