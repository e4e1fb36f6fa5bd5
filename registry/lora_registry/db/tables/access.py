"""Tokens, idempotency records, and the audit log."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Index, Text
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int, row_id


class Token(SQLModel, table=True):
    """A bearer token; only its sha256 is stored. namespace None: the role applies to all namespaces."""

    __tablename__ = "token"
    __table_args__ = (CheckConstraint("role in ('reader', 'writer', 'admin')", name="role"),)

    id: int = row_id()
    name: str = Field(max_length=128, unique=True)
    hash: str = Field(max_length=64, unique=True)
    role: str = Field(max_length=16)
    namespace: str | None = Field(default=None, max_length=96)
    created_at: int = big_int()
    revoked_at: int | None = big_int(nullable=True)


class IdempotencyRecord(SQLModel, table=True):
    """The response to a request with an Idempotency-Key, kept for a day. status 0: still in flight."""

    __tablename__ = "idempotency"

    author: str = Field(primary_key=True, max_length=128)
    key: str = Field(primary_key=True, max_length=128)
    request: str = Field(max_length=64)
    status: int = 0
    body: str = Field(default="", sa_type=Text)
    created_at: int = big_int(index=True)


class AuditEvent(SQLModel, table=True):
    """A committed change, written in the same transaction."""

    __tablename__ = "event"
    __table_args__ = (Index("ix_event_namespace_id", "namespace", "id"),)

    id: int = row_id()
    kind: str = Field(max_length=32)
    at: int = big_int()
    actor: str = Field(max_length=128)
    namespace: str = Field(max_length=96)
    subject: str = Field(max_length=300)  # namespace/name:tag: 96 + 64 + 128 characters and two separators
    facts: str = Field(default="{}", sa_type=Text)
