"""Namespaces and tokens."""

from __future__ import annotations

from lora_contract.roles import Grant, Role, Visibility
from lora_contract.wire.common import Request, Response


class NamespaceView(Response, frozen=True):
    """role: the caller's, by a grant; None if only the visibility gives access."""

    name: str
    visibility: Visibility
    created_at: str
    role: Role | None = None


class NamespaceList(Response, frozen=True):
    items: list[NamespaceView]
    next_cursor: str | None = None


class VisibilityRequest(Request, frozen=True):
    """private: who has a grant reads. internal: whoever is signed in reads. public: everybody reads."""

    visibility: Visibility


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
