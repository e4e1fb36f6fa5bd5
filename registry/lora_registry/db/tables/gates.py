"""Policies on tags, decisions, approvals and signatures. The database refuses to change these rows,
and to remove others than decisions that were exported."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Index, LargeBinary, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int, foreign_key, row_id


class PolicyRow(SQLModel, table=True):
    """A policy for a pattern of tags; the highest number per pattern is in force. body: canonical; None: removed."""

    __tablename__ = "policy"
    __table_args__ = (
        UniqueConstraint("pattern", "number"),
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint("(body is null) = (digest is null)", name="lifted"),
    )

    id: int = row_id()
    namespace: str = Field(max_length=96, index=True)
    """The namespace part of the pattern; `*` if it contains one."""
    pattern: str = Field(max_length=300)
    number: int
    digest: str | None = Field(default=None, max_length=71)
    body: bytes | None = Field(default=None, sa_type=LargeBinary)
    author: str = Field(max_length=128)
    created_at: int = big_int()


class Approval(SQLModel, table=True):
    """An approval of a version for a tag. role: the approver's role at that time."""

    __tablename__ = "approval"
    __table_args__ = (UniqueConstraint("version_id", "tag", "author", "role"),)

    id: int = row_id()
    version_id: int = foreign_key("version.id")
    tag: str = Field(max_length=128)
    author: str = Field(max_length=128)
    role: str = Field(max_length=16)
    reason: str = Field(default="", sa_type=Text)
    created_at: int = big_int()


class VersionSignature(SQLModel, table=True):
    """A key's signature of a version, one per key and format. Verified on arrival and before each use."""

    __tablename__ = "signature"
    __table_args__ = (UniqueConstraint("version_id", "key_id", "format"),)

    id: int = row_id()
    version_id: int = foreign_key("version.id")
    key_id: str = Field(max_length=71)
    key: bytes = Field(sa_type=LargeBinary)
    """SubjectPublicKeyInfo in DER."""
    statement: bytes = Field(sa_type=LargeBinary)
    """The signed payload of the envelope."""
    signature: bytes = Field(sa_type=LargeBinary)
    format: str = Field(default="lora-reg", max_length=16, sa_column_kwargs={"server_default": "lora-reg"})
    author: str = Field(max_length=128)
    created_at: int = big_int()


class DecisionRow(SQLModel, table=True):
    """A gate's decision on a version and a tag, with the digests of everything it depends on.

    allowed: by the policy. forced: an administrator moved the tag although the policy refused, for `reason`.
    """

    __tablename__ = "decision"
    __table_args__ = (Index("ix_decision_version_tag", "version_id", "tag"),)

    id: int = row_id()
    version_id: int = foreign_key("version.id")
    tag: str = Field(max_length=128)
    base_digest: str = Field(max_length=71)
    holder_version_id: int | None = foreign_key("version.id", nullable=True)
    """The tag's target at that time, if it was another version."""
    policy_digest: str = Field(max_length=71)
    report_id: str | None = Field(default=None, max_length=160, foreign_key="report.id")
    """Report on the version; None if it was forced without a report."""
    sets: str = Field(sa_type=Text)
    """Digests of the evaluation sets by role, as JSON."""
    allowed: bool
    forced: bool = False
    reason: str = Field(default="", sa_type=Text)
    body: str = Field(sa_type=Text)
    """The GateView as JSON."""
    author: str = Field(max_length=128)
    created_at: int = big_int()
