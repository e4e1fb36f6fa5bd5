"""Versions, repositories and lineage."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from lora_contract.findings import Finding
from lora_contract.manifest import Kind
from lora_contract.wire.common import Reason, Request, Response, Text
from lora_contract.wire.uploads import FileSpec


class VersionRef(Response, frozen=True):
    """A summary of a version, as in lists and lineage."""

    namespace: str
    name: str
    kind: Kind
    number: int
    digest: str
    created_at: str


class VersionFile(Response, frozen=True):
    path: str
    size: int
    digest: str


class HubLocation(Request, frozen=True):
    """A commit of a repository of a Hub. endpoint: URL of the Hub."""

    endpoint: Text
    repository: Text
    commit: Text


class VersionView(Response, frozen=True):
    """A version. base: the pinned base version. facts: what the check found out about it (adapters, bases).

    yanked: the reason; None if it is not yanked. tags: the tags that point to it now. weights_at: where the weights of
    a base are fetched from when a job needs them.
    """

    namespace: str
    name: str
    kind: Kind
    number: int
    digest: str
    commit: str
    created_at: str
    author: str
    message: str
    meta: dict[str, str]
    size: int
    files: list[VersionFile]
    tags: list[str]
    base: VersionRef | None = None
    parents: list[VersionRef] = []
    recipe: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None
    yanked: str | None = None
    weights_absent: bool = False
    weights_at: HubLocation | None = None


class VersionList(Response, frozen=True):
    items: list[VersionView]
    next_cursor: str | None = None


class CommitRequest(Request, frozen=True):
    """Commit an upload session as a version.

    base: reference of the base version (adapters, models); a bare name pins its newest version. parents: versions
    that this one continues. accept_base: accept the base even if the adapter's config names another, for this push.
    weights_absent / fingerprint: a base whose weights stay where they are; the fingerprint is then the client's.
    weights_at: where they are, for jobs that need them.
    aliases: what trainers write for this base (bases only).
    """

    session: Text
    kind: Kind
    files: list[FileSpec]
    base: Text | None = None
    tags: list[Text] = []
    message: str = ""
    meta: dict[str, str] = {}
    parents: list[Text] = []
    accept_base: bool = False
    weights_absent: bool = False
    fingerprint: dict[str, Any] | None = None
    weights_at: HubLocation | None = None
    aliases: list[Text] = []


class CommitResult(Response, frozen=True):
    """created: False if the same content was a version already, whose message and metadata stay unchanged.

    weights_added: the version was a base without its weights, and now has them.
    """

    version: VersionView
    created: bool
    weights_added: bool = False
    findings: list[Finding] = []
    job: str | None = None


class YankRequest(Request, frozen=True):
    reason: Reason


class DeletionView(Response, frozen=True):
    """What a deletion would free: blobs that no other version in the caller's namespaces has.

    after_seconds: how long the bytes are kept after nothing needs them; until then a version can be restored.
    """

    versions: int
    blobs: int
    bytes: int
    after_seconds: float


class RetentionRequest(Request, frozen=True):
    """`PUT /repositories/{ns}/{name}/retention`. keep_last: None removes the rule."""

    keep_last: Annotated[int, Meta(ge=1, le=1_000_000)] | None


class RetentionView(Response, frozen=True):
    """keep_last: the rule; None: every version is kept. would_delete: numbers of the versions that it, or the rule that
    was asked about, would delete now; would_free: bytes that no other version in the caller's namespaces has."""

    keep_last: int | None
    would_delete: list[int]
    would_free: int


class RepositoryView(Response, frozen=True):
    namespace: str
    name: str
    kind: Kind
    created_at: str
    versions: int
    latest: VersionRef | None = None
    tags: dict[str, int] = {}
    aliases: list[str] = []


class RepositoryList(Response, frozen=True):
    items: list[RepositoryView]
    next_cursor: str | None = None


class AliasRequest(Request, frozen=True):
    aliases: list[Text]


class LineageEdge(Response, frozen=True):
    """`child` was made from `parent`. relation: `base`, `parent` (continues it) or `input` (of a recipe)."""

    child: str
    parent: str
    relation: str


class Lineage(Response, frozen=True):
    """Nodes by `namespace/name:vN`, edges between those keys, starting at `root`."""

    root: str
    nodes: dict[str, VersionRef]
    edges: list[LineageEdge]
    truncated: bool = False
