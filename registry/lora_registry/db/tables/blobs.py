"""Blobs and uploads in progress."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import moment


class Blob(SQLModel, table=True):
    """A blob whose bytes are in the store and were checked against their digest."""

    __tablename__ = "blob"

    digest: str = Field(primary_key=True, max_length=71)
    size: int = moment()
    created_at: int = moment()


class UploadSessionRow(SQLModel, table=True):
    """Files announced for a version of `namespace/name`; blobs may arrive until `expires_at`."""

    __tablename__ = "upload_session"

    id: str = Field(primary_key=True, max_length=32)
    namespace: str = Field(max_length=96)
    name: str = Field(max_length=64)
    kind: str = Field(max_length=16)
    author: str = Field(max_length=128)
    created_at: int = moment()
    expires_at: int = moment(index=True)


class UploadFile(SQLModel, table=True):
    """A blob that a session announced. `stored`: its bytes are in the store, checked, by this session or because
    the caller could read them already."""

    __tablename__ = "upload_file"

    session_id: str = Field(primary_key=True, max_length=32, foreign_key="upload_session.id", ondelete="CASCADE")
    digest: str = Field(primary_key=True, max_length=71)
    size: int = moment()
    stored: bool = False
