"""Repositories and versions as named in URLs: unchecked text; `resolve` checks spelling and permissions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RepositoryPath:
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class VersionPath:
    """selector: `latest`, a tag, `vN`, `sha256:…`, `tag@sha256:…`, or a commit id of 40 hex digits."""

    repository: RepositoryPath
    selector: str

    @property
    def namespace(self) -> str:
        return self.repository.namespace
