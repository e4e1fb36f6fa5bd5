"""What a caller may reach, as an SQL condition on a column of namespaces: the only place where patterns become SQL."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, exists, false, or_, true
from sqlalchemy.orm import Mapped, aliased
from sqlmodel import col, select

from lora_contract.glob import matches
from lora_contract.roles import ALL, Visibility
from lora_registry.db.tables import Namespace, Repository, Version


@dataclass(frozen=True, slots=True)
class Scope:
    """Namespaces by pattern and by visibility. A condition adds no query to the one it is part of."""

    patterns: tuple[str, ...] = (ALL,)
    visibilities: tuple[Visibility, ...] = ()

    @property
    def is_all(self) -> bool:
        return ALL in self.patterns

    def has(self, namespace: str) -> bool:
        """Whether a pattern matches. A visibility may still give access: only the database has those."""
        return any(matches(pattern, namespace) for pattern in self.patterns)

    def where(self, column: Mapped[str]) -> ColumnElement[bool]:
        """The condition that a namespace is in the scope."""
        if self.is_all:
            return true()
        names = [pattern for pattern in self.patterns if ALL not in pattern]
        conditions = [column.in_(names)] if names else []
        conditions += [column.like(_like(pattern), escape="\\") for pattern in self.patterns if ALL in pattern]
        if self.visibilities:
            open_to_all = select(Namespace.name).where(col(Namespace.visibility).in_(self.visibilities))
            conditions.append(column.in_(open_to_all))
        return or_(false(), *conditions)

    def repositories(self) -> ColumnElement[bool]:
        """The condition on `Repository` that something in it may be read: it is in the scope, or shared."""
        if self.is_all:
            return true()
        shared = exists().where(col(Version.repository_id) == col(Repository.id), self._pinned()).correlate(Repository)
        return self.where(col(Repository.namespace)) | ((col(Repository.kind) == "base") & shared)

    def versions(self) -> ColumnElement[bool]:
        """The condition on `Version`, joined with its `Repository`, that it may be read."""
        if self.is_all:
            return true()
        return self.where(col(Repository.namespace)) | ((col(Repository.kind) == "base") & self._pinned())

    def _pinned(self) -> ColumnElement[bool]:
        """The condition that a live version in the scope pins `Version` as its base."""
        child, home = aliased(Version), aliased(Repository)
        return (
            exists()
            .where(
                col(child.base_version_id) == col(Version.id),
                col(child.deleted_at).is_(None),
                col(child.repository_id) == col(home.id),
                self.where(col(home.namespace)),
            )
            .correlate(Version)
        )


def _like(pattern: str) -> str:
    """Convert a pattern to a LIKE pattern, escaped by backslash."""
    return pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
