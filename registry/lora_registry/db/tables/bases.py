"""Data of base versions beyond their manifest."""

from __future__ import annotations

from sqlalchemy import LargeBinary, UniqueConstraint
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import foreign_key, row_id


class BaseFingerprintRow(SQLModel, table=True):
    """The canonical fingerprint of a base version."""

    __tablename__ = "base_fingerprint"

    version_id: int = foreign_key("version.id", primary_key=True)
    digest: str = Field(max_length=71)
    body: bytes = Field(sa_type=LargeBinary)
    rendered_template: str | None = Field(default=None, max_length=71)
    """Digest of the chat template rendered on a fixed conversation; None until a worker rendered it."""


class BaseAlias(SQLModel, table=True):
    """A string that trainers write for a base; one base per string and namespace."""

    __tablename__ = "base_alias"
    __table_args__ = (UniqueConstraint("namespace", "alias"),)

    id: int = row_id()
    namespace: str = Field(max_length=96)
    alias: str = Field(max_length=512)
    repository_id: int = foreign_key("repository.id", index=True)
