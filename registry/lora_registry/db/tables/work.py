"""Recipes, jobs and reports. The engine keeps a job's state; these rows say what it is about."""

from __future__ import annotations

from sqlalchemy import LargeBinary, Text
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import foreign, moment


class RecipeRow(SQLModel, table=True):
    """Canonical recipe bytes under their digest."""

    __tablename__ = "recipe"

    digest: str = Field(primary_key=True, max_length=71)
    body: bytes = Field(sa_type=LargeBinary)
    created_at: int = moment()


class JobRow(SQLModel, table=True):
    """A job that was asked for. `id` is the engine's id, made of the kind and the recipe's or version's digest."""

    __tablename__ = "job"

    id: str = Field(primary_key=True, max_length=160)
    kind: str = Field(max_length=32)
    namespace: str = Field(max_length=96, index=True)
    title: str = Field(default="", sa_type=Text)
    author: str = Field(max_length=128)
    created_at: int = moment(index=True)
    recipe_digest: str | None = Field(default=None, max_length=71, foreign_key="recipe.digest")
    subject_version_id: int | None = foreign("version.id", nullable=True, index=True)
    result_version_id: int | None = foreign("version.id", nullable=True)


class ReportRow(SQLModel, table=True):
    """What a validation found. One per job; immutable."""

    __tablename__ = "report"

    id: str = Field(primary_key=True, max_length=160)
    kind: str = Field(max_length=32)
    version_id: int = foreign("version.id", index=True)
    passed: bool
    body: str = Field(sa_type=Text)
    created_at: int = moment()
