"""Tags, their moves and their history."""

from __future__ import annotations

from lora_contract.wire.common import Reason, Request, Response, Text
from lora_contract.wire.repositories import VersionRef


class TagRequest(Request, frozen=True):
    """target: a selector in the same repository (`v3`, another tag, a digest, `latest`)."""

    target: Text
    reason: Reason = ""


class RollbackRequest(Request, frozen=True):
    """to: a selector; None: the tag's previous target."""

    to: Text | None = None
    reason: Reason = ""


class ProtectRequest(Request, frozen=True):
    protected: bool


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
