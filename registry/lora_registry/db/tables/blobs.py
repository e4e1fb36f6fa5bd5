"""Blobs and uploads in progress."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int


class Blob(SQLModel, table=True):
    """The state of the bytes of a digest. Rows are never removed, so that a life is never used again.

    state: `ok`: in the store, and right when they were last read. `damaged`, `missing`: found so; versions need them.
    `deleting`: a collector removes them. `absent`: never stored, or removed. life: see `blobs.keys.BlobAddress`.
    Times are the database's: condemned_at: when a collector first found that nothing needs them; verified_at: when all
    of them were last read and compared with the digest.
    """

    __tablename__ = "blob"
    __table_args__ = (CheckConstraint("state in ('ok', 'damaged', 'missing', 'deleting', 'absent')", name="state"),)

    digest: str = Field(primary_key=True, max_length=71)
    size: int = big_int()
    created_at: int = big_int()
    state: str = Field(default="ok", max_length=16, index=True)
    life: str = Field(default="", max_length=8)
    condemned_at: int | None = big_int(nullable=True, index=True)
    verified_at: int = Field(default=0, sa_type=BigInteger, index=True)


class Orphan(SQLModel, table=True):
    """An object of the store that no blob's row names: of an upload or a job that has not committed yet, or left over.

    first_seen_at: by the database's clock. doomed: a collector is about to remove it, so nothing may refer to it.
    """

    __tablename__ = "orphan"

    digest: str = Field(primary_key=True, max_length=71)
    life: str = Field(primary_key=True, max_length=8)
    size: int = big_int()
    first_seen_at: int = big_int()
    doomed: bool = False


class UploadSessionRow(SQLModel, table=True):
    """Files announced for a version of `namespace/name`; their blobs are accepted until `expires_at`.

    kind: of the version, or `hub` for files that a Hub client will commit. capability: the sha256 of the secret in the
    URLs to which a Hub client sends them, which it does without its token.
    """

    __tablename__ = "upload_session"

    id: str = Field(primary_key=True, max_length=32)
    namespace: str = Field(max_length=96)
    name: str = Field(max_length=64)
    kind: str = Field(max_length=16)
    author: str = Field(max_length=128)
    created_at: int = big_int()
    expires_at: int = big_int(index=True)
    capability: str | None = Field(default=None, max_length=64, index=True, nullable=True)


class UploadFile(SQLModel, table=True):
    """A blob that a session announced. stored: its bytes are in the store, verified, from this session or because the
    caller could already read them."""

    __tablename__ = "upload_file"

    session_id: str = Field(primary_key=True, max_length=32, foreign_key="upload_session.id", ondelete="CASCADE")
    digest: str = Field(primary_key=True, max_length=71, index=True)
    size: int = big_int()
    stored: bool = False
