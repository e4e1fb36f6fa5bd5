"""Namespaces, tokens, idempotency records, and the audit log."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Index, Text
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int, foreign_key, row_id


class Namespace(SQLModel, table=True):
    """A namespace, from the first repository in it on, or from when its visibility was set."""

    __tablename__ = "namespace"
    __table_args__ = (
        CheckConstraint("visibility in ('private', 'internal', 'public')", name="visibility"),
        CheckConstraint("bytes >= 0 and versions >= 0", name="usage"),
        Index("ix_namespace_visibility", "visibility"),
    )

    name: str = Field(primary_key=True, max_length=96)
    visibility: str = Field(default="private", max_length=16)
    created_at: int = big_int()
    bytes: int = big_int(default=0)
    """Of the stored files of live versions; changed in the transaction that changes those, as `versions` is."""
    versions: int = big_int(default=0)
    max_bytes: int | None = big_int(nullable=True)
    max_versions: int | None = big_int(nullable=True)
    max_jobs: int | None = big_int(nullable=True)
    """Queued and running at once; see `repositories.usage`."""


class Token(SQLModel, table=True):
    """A holder of grants: a person, a CI job, an inference server. Its name is never reused, since events name it.

    Its secrets are rows of their own, so that a rotation can let two of them overlap.
    """

    __tablename__ = "token"

    id: int = row_id()
    name: str = Field(max_length=128, unique=True)
    note: str = Field(default="", sa_type=Text)
    created_by: str = Field(default="", max_length=128)
    created_at: int = big_int()
    expires_at: int | None = big_int(nullable=True)
    revoked_at: int | None = big_int(nullable=True)
    last_used_at: int | None = big_int(nullable=True)
    """Within a minute."""


class TokenSecret(SQLModel, table=True):
    """A secret of a token; only its sha256 is stored. expires_at: end of the overlap of a rotation."""

    __tablename__ = "token_secret"

    hash: str = Field(primary_key=True, max_length=64)
    token_id: int = foreign_key("token.id", index=True)
    created_at: int = big_int()
    expires_at: int | None = big_int(nullable=True)


class TokenGrant(SQLModel, table=True):
    """A role of a token in the namespaces that a pattern matches."""

    __tablename__ = "token_grant"
    __table_args__ = (CheckConstraint("role in ('reader', 'writer', 'maintainer', 'admin')", name="role"),)

    token_id: int = foreign_key("token.id", primary_key=True)
    pattern: str = Field(primary_key=True, max_length=96)
    role: str = Field(max_length=16)


class IdempotencyRecord(SQLModel, table=True):
    """The response to a request with an Idempotency-Key, kept for a stated time. status 0: still in flight."""

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
