"""Files that Hub clients committed before they make a whole version."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, UniqueConstraint
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int


class Staging(SQLModel, table=True):
    """What commits to a branch of `namespace/name` changed beyond its newest version; without files: a repository, or a
    branch, that was created and has no version yet.

    kind: `model` or `dataset`, as Hub clients call it. branch: empty for `main`. commit_id: 40 hex digits, another one
    with each change. The blobs are kept until `expires_at`, by the database's clock.
    """

    __tablename__ = "staging"
    __table_args__ = (
        UniqueConstraint("namespace", "name", "branch"),
        CheckConstraint("kind in ('model', 'dataset')", name="kind"),
    )

    id: str = Field(primary_key=True, max_length=32)
    namespace: str = Field(max_length=96)
    name: str = Field(max_length=64)
    branch: str = Field(default="", max_length=128)
    kind: str = Field(max_length=16)
    commit_id: str = Field(max_length=40)
    author: str = Field(max_length=128)
    created_at: int = big_int()
    expires_at: int = big_int(index=True)


class StagedFile(SQLModel, table=True):
    """A changed file. digest None: the file of the version is deleted."""

    __tablename__ = "staged_file"
    __table_args__ = (ForeignKeyConstraint(["staging_id"], ["staging.id"], ondelete="CASCADE"),)

    staging_id: str = Field(primary_key=True, max_length=32)
    path: str = Field(primary_key=True, max_length=255)
    digest: str | None = Field(default=None, max_length=71, index=True, nullable=True)
    size: int = big_int(default=0)
