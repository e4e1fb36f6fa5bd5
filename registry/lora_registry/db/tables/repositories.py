"""Repositories, versions, tags and lineage."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, LargeBinary, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int, foreign_key, row_id


class Repository(SQLModel, table=True):
    """A repository. Rows are never removed: a deleted one is a tombstone, and its name is never reused.

    namespace, name: in lower case, so that they are unique whatever their case; everything but views uses them.
    """

    __tablename__ = "repository"
    __table_args__ = (
        UniqueConstraint("namespace", "name"),
        CheckConstraint("next_number >= 1", name="next_number"),
        CheckConstraint("kind in ('base', 'adapter', 'model', 'dataset')", name="kind"),
    )

    id: int = row_id()
    namespace: str = Field(max_length=96)
    name: str = Field(max_length=64)
    kind: str = Field(max_length=16)
    next_number: int = 1
    """Number of the next version; incremented in the transaction that inserts it, so there are no gaps."""
    created_at: int = big_int()
    deleted_at: int | None = big_int(nullable=True)
    spelling: str | None = Field(default=None, max_length=64)
    """The name as it was first pushed, if it has capitals."""

    @property
    def shown(self) -> str:
        """The name for people."""
        return self.spelling or self.name

    @property
    def label(self) -> str:
        """`namespace/name` for people."""
        return f"{self.namespace}/{self.shown}"


class Version(SQLModel, table=True):
    """Immutable content. Only yanking and deleting (a tombstone) change a row."""

    __tablename__ = "version"
    __table_args__ = (
        UniqueConstraint("repository_id", "number"),
        UniqueConstraint("repository_id", "id"),
        CheckConstraint("number >= 1", name="number"),
        Index(
            "uq_version_live_digest",
            "repository_id",
            "digest",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("ix_version_repository_commit", "repository_id", "commit_id"),
    )

    id: int = row_id()
    repository_id: int = foreign_key("repository.id")
    number: int
    digest: str = Field(max_length=71, index=True)
    commit_id: str = Field(max_length=40)
    manifest: bytes = Field(sa_type=LargeBinary)
    """The canonical manifest bytes; their sha256 is `digest`."""
    manifest_config: bytes = Field(sa_type=LargeBinary)
    size: int = big_int()
    """Total size of all files in bytes."""
    base_version_id: int | None = foreign_key("version.id", nullable=True, index=True)
    recipe_digest: str | None = Field(default=None, max_length=71, foreign_key="recipe.digest", index=True)
    weights_absent: bool = False
    facts: str | None = Field(default=None, sa_type=Text)
    """Results of the check, as JSON."""
    meta: str = Field(default="{}", sa_type=Text)
    message: str = Field(default="", sa_type=Text)
    author: str = Field(max_length=128)
    created_at: int = big_int()
    yanked_reason: str | None = Field(default=None, sa_type=Text)
    deleted_at: int | None = big_int(nullable=True)


class VersionBlob(SQLModel, table=True):
    """A file of a version, which keeps its blob alive. stored: False for weights that were never uploaded."""

    __tablename__ = "version_blob"

    version_id: int = foreign_key("version.id", primary_key=True)
    path: str = Field(primary_key=True, max_length=255)
    digest: str = Field(max_length=71, index=True, foreign_key="blob.digest")
    size: int = big_int()
    stored: bool = True


class Retention(SQLModel, table=True):
    """Which versions of a repository are kept: see `repositories.retention`."""

    __tablename__ = "retention"
    __table_args__ = (CheckConstraint("keep_last >= 1", name="keep_last"),)

    repository_id: int = foreign_key("repository.id", primary_key=True)
    keep_last: int
    author: str = Field(max_length=128)
    updated_at: int = big_int()


class VersionEdge(SQLModel, table=True):
    """`child` derives from `parent` (relation base, parent or input) or was evaluated on it (evaluated-on)."""

    __tablename__ = "version_edge"
    __table_args__ = (CheckConstraint("child_id <> parent_id", name="no_loop"),)

    child_id: int = foreign_key("version.id", primary_key=True)
    parent_id: int = foreign_key("version.id", primary_key=True, index=True)
    relation: str = Field(primary_key=True, max_length=16)


class Tag(SQLModel, table=True):
    """A movable name. The composite foreign key keeps its target in its repository: a tag always has a target."""

    __tablename__ = "tag"
    __table_args__ = (
        ForeignKeyConstraint(["repository_id", "version_id"], ["version.repository_id", "version.id"]),
        CheckConstraint("generation >= 1", name="generation"),
        Index("ix_tag_version", "version_id"),
    )

    repository_id: int = foreign_key("repository.id", primary_key=True)
    name: str = Field(primary_key=True, max_length=128)
    version_id: int = big_int()
    generation: int
    protected: bool = False
    updated_at: int = big_int()


class TagMove(SQLModel, table=True):
    """The history of tags. Generations are unique, so it cannot fork."""

    __tablename__ = "tag_move"
    __table_args__ = (UniqueConstraint("repository_id", "tag", "generation"),)

    id: int = row_id()
    repository_id: int = foreign_key("repository.id")
    tag: str = Field(max_length=128)
    generation: int
    from_version_id: int | None = foreign_key("version.id", nullable=True)
    to_version_id: int | None = foreign_key("version.id", nullable=True)
    decision_id: int | None = foreign_key("decision.id", nullable=True)
    """The gate's decision that allowed the move; None if no gate was involved."""
    reason: str = Field(default="", sa_type=Text)
    author: str = Field(max_length=128)
    at: int = big_int()
