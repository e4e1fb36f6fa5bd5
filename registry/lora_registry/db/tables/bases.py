"""Data of base versions beyond their manifest."""

from __future__ import annotations

from sqlalchemy import LargeBinary, UniqueConstraint
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int, foreign_key, row_id


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


class WeightSource(SQLModel, table=True):
    """Where the weights of a base lie that was registered without them: a commit of a repository of a Hub."""

    __tablename__ = "weight_source"

    version_id: int = foreign_key("version.id", primary_key=True)
    endpoint: str = Field(max_length=255)
    repository: str = Field(max_length=200)
    commit_id: str = Field(max_length=64)
    author: str = Field(max_length=128)
    created_at: int = big_int()
