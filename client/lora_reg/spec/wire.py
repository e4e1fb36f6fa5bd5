"""Requests and responses of `/api/v1`.

Requests forbid unknown fields; responses tolerate them, so that an older client reads a newer server. Times are
RFC 3339 strings in UTC. Digests are `sha256:…` strings. `cursor` is opaque: give it back to get the next page.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lora_reg.spec.findings import Finding
from lora_reg.spec.manifest import Kind
from lora_reg.spec.recipe import OutputDtype

API = "/api/v1"


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Response(msgspec.Struct, frozen=True, kw_only=True):
    pass


# Errors


class Problem(Response, frozen=True):
    """RFC 9457. `code` is the row of `spec.errors.ERRORS`; `way_out` its sentence or a better one."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    way_out: str
    retryable: bool = False
    request_id: str = ""
    findings: list[Finding] = []
    current: Any = None


# Who


class Principal(Response, frozen=True):
    """Who is asking. namespace None: the role holds everywhere. role: reader, writer or admin."""

    name: str
    role: str
    namespace: str | None = None
    anonymous: bool = False


# Uploads


class FileSpec(Request, frozen=True):
    path: str
    size: int
    digest: str


class UploadRequest(Request, frozen=True):
    """Open an upload session for these files of a version to be committed to `namespace/name`."""

    namespace: str
    name: str
    kind: Kind
    files: list[FileSpec]


class UploadTarget(Response, frozen=True):
    """Where one blob goes. state: `present` (nothing to send) or `needed`.

    url/headers/method: a presigned request straight to the store, to be followed by `…/complete`; None: PUT the
    bytes to `/api/v1/uploads/{id}/blobs/{digest}`.
    """

    digest: str
    size: int
    state: str
    method: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}


class UploadSession(Response, frozen=True):
    id: str
    expires_at: str
    blobs: list[UploadTarget]


# Commits and versions


class CommitRequest(Request, frozen=True):
    """Turn an upload session into a version.

    base: reference of the base version (adapters, models); a bare name pins its newest version. parents: versions
    that this one continues. accept_base: take the base although the adapter names another (this push alone).
    weights_absent / fingerprint: a base whose weights stay where they are; the fingerprint is then the client's.
    aliases: what trainers write for this base (bases only).
    """

    session: str
    kind: Kind
    files: list[FileSpec]
    base: str | None = None
    tags: list[str] = []
    message: str = ""
    meta: dict[str, str] = {}
    parents: list[str] = []
    accept_base: bool = False
    weights_absent: bool = False
    fingerprint: dict[str, Any] | None = None
    aliases: list[str] = []


class VersionRef(Response, frozen=True):
    """A version in few words, as lists and lineage hold it."""

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


class VersionView(Response, frozen=True):
    """A version. base: the pinned base version. facts: what the check found out about it (adapters, bases).

    yanked: the reason, None where it is not yanked. tags: the tags that point to it now.
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


class CommitResult(Response, frozen=True):
    """created: False where the same content was a version already (its message and metadata are unchanged)."""

    version: VersionView
    created: bool
    findings: list[Finding] = []
    job: str | None = None


class VersionList(Response, frozen=True):
    items: list[VersionView]
    next_cursor: str | None = None


# Repositories and tags


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


class TagRequest(Request, frozen=True):
    """target: a selector in the same repository (`v3`, another tag, a digest, `latest`)."""

    target: str
    reason: str = ""


class RollbackRequest(Request, frozen=True):
    """to: a selector; None: the version that the tag pointed to before the present one."""

    to: str | None = None
    reason: str = ""


class ProtectRequest(Request, frozen=True):
    protected: bool


class YankRequest(Request, frozen=True):
    reason: str


class AliasRequest(Request, frozen=True):
    aliases: list[str]


class TagView(Response, frozen=True):
    """generation grows by one with every move; the ETag is `"gen-<generation>"`."""

    namespace: str
    name: str
    tag: str
    generation: int
    protected: bool
    version: VersionRef
    updated_at: str


class TagList(Response, frozen=True):
    items: list[TagView]


class TagEvent(Response, frozen=True):
    """One move. from_number / to_number None: the tag did not exist before / was removed."""

    tag: str
    generation: int
    from_number: int | None
    to_number: int | None
    from_digest: str | None
    to_digest: str | None
    reason: str
    author: str
    at: str


class TagHistory(Response, frozen=True):
    items: list[TagEvent]
    next_cursor: str | None = None


# Lineage


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


# Jobs and reports


class MergeInput(Request, frozen=True):
    adapter: str
    weight: float = 1.0


class MergeRequest(Request, frozen=True):
    """base None: the base that the first adapter pins. to: `namespace/name` of the result, a repository of kind
    `model`. dtype None: each tensor keeps its own. tags: set on the result in the transaction that commits it."""

    adapters: list[MergeInput]
    to: str
    base: str | None = None
    dtype: OutputDtype | None = None
    tags: list[str] = []
    message: str = ""
    allow_loss: bool = False


class JobView(Response, frozen=True):
    """state: queued, running, done, failed, cancelled. result: the version made, where the job made one."""

    id: str
    kind: str
    state: str
    queue: str
    created_at: str
    updated_at: str
    title: str = ""
    worker: str | None = None
    attempts: int = 0
    error: str | None = None
    error_code: str | None = None
    result: VersionRef | None = None
    recipe: dict[str, Any] | None = None


class JobList(Response, frozen=True):
    items: list[JobView]
    next_cursor: str | None = None


class JobProgress(Response, frozen=True):
    offset: int
    at: str
    step: str
    message: str
    done: int = 0
    total: int | None = None
    unit: str = ""


class JobProgressList(Response, frozen=True):
    """state is the job's at the time of the answer; where it has ended and `items` is empty, there is no more."""

    state: str
    items: list[JobProgress]


class ReportView(Response, frozen=True):
    """What a validation found; immutable, bound to the version's digest."""

    id: str
    kind: str
    version: str
    created_at: str
    passed: bool
    findings: list[Finding] = []
    body: dict[str, Any] = {}


class ReportList(Response, frozen=True):
    items: list[ReportView]


class EventView(Response, frozen=True):
    id: int
    kind: str
    at: str
    actor: str
    subject: str
    facts: dict[str, Any]


class EventList(Response, frozen=True):
    items: list[EventView]
    next_cursor: str | None = None
