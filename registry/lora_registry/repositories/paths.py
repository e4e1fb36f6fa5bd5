"""Repositories and versions as named in URLs: unchecked text; `resolve` checks spelling and permissions."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RepositoryPath:
    """namespace, name: in lower case, however they are given. spelling: the name as it is given."""

    namespace: str
    name: str
    spelling: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spelling", self.name)
        object.__setattr__(self, "namespace", self.namespace.lower())
        object.__setattr__(self, "name", self.name.lower())

    def __str__(self) -> str:
        return f"{self.namespace}/{self.spelling}"


@dataclass(frozen=True, slots=True)
class VersionPath:
    """selector: `latest`, a tag, `vN`, `sha256:…`, `tag@sha256:…`, or a commit id of 40 hex digits."""

    repository: RepositoryPath
    selector: str

    @property
    def namespace(self) -> str:
        return self.repository.namespace
