"""Blobs and uploads in progress."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int


class Blob(SQLModel, table=True):
    """A blob whose bytes are in the store and were checked against their digest."""

    __tablename__ = "blob"

    digest: str = Field(primary_key=True, max_length=71)
    size: int = big_int()
    created_at: int = big_int()


class UploadSessionRow(SQLModel, table=True):
    """Files announced for a version of `namespace/name`; their blobs are accepted until `expires_at`."""

    __tablename__ = "upload_session"

    id: str = Field(primary_key=True, max_length=32)
    namespace: str = Field(max_length=96)
    name: str = Field(max_length=64)
    kind: str = Field(max_length=16)
    author: str = Field(max_length=128)
    created_at: int = big_int()
    expires_at: int = big_int(index=True)


class UploadFile(SQLModel, table=True):
    """A blob that a session announced. stored: its bytes are in the store, verified, from this session or because the
    caller could already read them."""

    __tablename__ = "upload_file"

    session_id: str = Field(primary_key=True, max_length=32, foreign_key="upload_session.id", ondelete="CASCADE")
    digest: str = Field(primary_key=True, max_length=71)
    size: int = big_int()
    stored: bool = False
