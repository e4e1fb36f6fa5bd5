"""Recipes, jobs and reports. The engine stores a job's state; these rows describe the job."""

from __future__ import annotations

from sqlalchemy import LargeBinary, Text
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int, foreign_key


class RecipeRow(SQLModel, table=True):
    """Canonical recipe bytes by digest."""

    __tablename__ = "recipe"

    digest: str = Field(primary_key=True, max_length=71)
    body: bytes = Field(sa_type=LargeBinary)
    created_at: int = big_int()


class JobRow(SQLModel, table=True):
    """A requested job.

    id: the engine's id, from the kind and the recipe's or version's digest. title: names versions of other namespaces
    as `{0}`, `{1}` …, which `mentions` lists as JSON: pairs of their row id and their name.
    """

    __tablename__ = "job"

    id: str = Field(primary_key=True, max_length=160)
    kind: str = Field(max_length=32)
    namespace: str = Field(max_length=96, index=True)
    title: str = Field(default="", sa_type=Text)
    mentions: str = Field(default="[]", sa_type=Text)
    author: str = Field(max_length=128)
    created_at: int = big_int(index=True)
    recipe_digest: str | None = Field(default=None, max_length=71, foreign_key="recipe.digest")
    subject_version_id: int | None = foreign_key("version.id", nullable=True, index=True)
    result_version_id: int | None = foreign_key("version.id", nullable=True)
    reserved_until: int | None = big_int(nullable=True)
    """Until then it counts as queued: a retry was admitted, and reaches the engine in a transaction of its own."""


class ReportRow(SQLModel, table=True):
    """The report of a job. One per job; immutable."""

    __tablename__ = "report"

    id: str = Field(primary_key=True, max_length=160)
    kind: str = Field(max_length=32)
    version_id: int = foreign_key("version.id", index=True)
    passed: bool
    body: str = Field(sa_type=Text)
    created_at: int = big_int()
