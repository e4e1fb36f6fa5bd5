"""Namespaces and tokens."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lora_contract.roles import Grant, Pattern, Role, Visibility
from lora_contract.wire.common import Request, Response


class Usage(Response, frozen=True):
    """What a namespace holds. bytes: the files of its live versions, also of those that share them. jobs: queued and
    running ones, other than inspections. max_bytes, max_versions, max_jobs: its quota; None: no limit."""

    bytes: int
    versions: int
    max_bytes: int | None = None
    max_versions: int | None = None
    jobs: int = 0
    max_jobs: int | None = None


class NamespaceView(Response, frozen=True):
    """role: the caller's, by a grant; None if only the visibility gives access. usage: for callers with a role."""

    name: str
    visibility: Visibility
    created_at: str
    role: Role | None = None
    usage: Usage | None = None


class NamespaceList(Response, frozen=True):
    items: list[NamespaceView]
    next_cursor: str | None = None


class VisibilityRequest(Request, frozen=True):
    """private: who has a grant reads. internal: whoever is signed in reads. public: everybody reads."""

    visibility: Visibility


class QuotaRequest(Request, frozen=True):
    """The quota of a namespace. None: no limit. What it holds already stays, also if it is more.

    max_jobs: queued and running at once.
    """

    max_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] | None = None
    max_versions: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None
    max_jobs: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None


class GrantsRequest(Request, frozen=True):
    """A change of a token's grants. add: a grant for a pattern that has one replaces it. remove: patterns.

    replace: instead of all grants that the caller administers.
    """

    add: Annotated[list[Grant], msgspec.Meta(max_length=64)] = []
    remove: Annotated[list[Pattern], msgspec.Meta(max_length=64)] = []
    replace: Annotated[list[Grant], msgspec.Meta(max_length=64)] | None = None


class TokenView(Response, frozen=True):
    """A token, without its secret.

    Args:
        grants: those in namespaces that the caller administers.
        elsewhere: it has other grants too; then its note is not shown.
        last_used_at: within a minute.
    """

    name: str
    grants: list[Grant]
    created_at: str
    created_by: str = ""
    expires_at: str | None = None
    last_used_at: str | None = None
    revoked_at: str | None = None
    note: str = ""
    elsewhere: bool = False


class TokenList(Response, frozen=True):
    items: list[TokenView]
    next_cursor: str | None = None
