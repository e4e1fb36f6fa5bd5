"""Policies on tags, what was decided under them, and signatures. The database refuses to change or remove a row."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Index, LargeBinary, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import foreign, moment, row_id


class PolicyRow(SQLModel, table=True):
    """A document for a pattern of tags; the highest number of a pattern is in force. body: canonical; None: removed."""

    __tablename__ = "policy"
    __table_args__ = (
        UniqueConstraint("pattern", "number"),
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint("(body is null) = (digest is null)", name="lifted"),
    )

    id: int = row_id()
    namespace: str = Field(max_length=96, index=True)
    """The pattern's first part, `*` if it contains one."""
    pattern: str = Field(max_length=300)
    number: int
    digest: str | None = Field(default=None, max_length=71)
    body: bytes | None = Field(default=None, sa_type=LargeBinary)
    author: str = Field(max_length=128)
    created_at: int = moment()


class Approval(SQLModel, table=True):
    """An approval of a version for a tag. role: the approver's at that time."""

    __tablename__ = "approval"
    __table_args__ = (UniqueConstraint("version_id", "tag", "author", "role"),)

    id: int = row_id()
    version_id: int = foreign("version.id")
    tag: str = Field(max_length=128)
    author: str = Field(max_length=128)
    role: str = Field(max_length=16)
    reason: str = Field(default="", sa_type=Text)
    created_at: int = moment()


class VersionSignature(SQLModel, table=True):
    """A key's signature of a version, one for each key. Valid when it arrived; verified again before each use."""

    __tablename__ = "signature"
    __table_args__ = (UniqueConstraint("version_id", "key_id"),)

    id: int = row_id()
    version_id: int = foreign("version.id")
    key_id: str = Field(max_length=71)
    key: bytes = Field(sa_type=LargeBinary)
    """The SubjectPublicKeyInfo in DER."""
    statement: bytes = Field(sa_type=LargeBinary)
    """The payload of the envelope, as it was signed."""
    signature: bytes = Field(sa_type=LargeBinary)
    author: str = Field(max_length=128)
    created_at: int = moment()


class DecisionRow(SQLModel, table=True):
    """A gate's decision on a version and a tag, with the digests of all that it depends on.

    allowed: by the policy alone. forced: an administrator moved the tag although it was not allowed, for `reason`.
    """

    __tablename__ = "decision"
    __table_args__ = (Index("ix_decision_version_tag", "version_id", "tag"),)

    id: int = row_id()
    version_id: int = foreign("version.id")
    tag: str = Field(max_length=128)
    base_digest: str = Field(max_length=71)
    holder_version_id: int | None = foreign("version.id", nullable=True)
    """The tag's target, if that was another version."""
    policy_digest: str = Field(max_length=71)
    report_id: str | None = Field(default=None, max_length=160, foreign_key="report.id")
    """On the version itself; None if it was forced before there was a report."""
    sets: str = Field(sa_type=Text)
    """Digests of the evaluation sets by role, as JSON."""
    allowed: bool
    forced: bool = False
    reason: str = Field(default="", sa_type=Text)
    body: str = Field(sa_type=Text)
    """The GateView as JSON."""
    author: str = Field(max_length=128)
    created_at: int = moment()
