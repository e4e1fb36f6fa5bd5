"""Shared by the whole API: its path, the base classes of its structs, problems, and the caller."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from lora_contract.findings import Finding
from lora_contract.roles import Grant

API = "/api/v1"

Text = Annotated[str, msgspec.Meta(max_length=4096)]
"""A text of a request: a name, a reference, a path, a sentence. A test finds texts without a limit."""

Reason = Text
"""A sentence that is stored and listed with what it explains."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Response(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Problem(Response, frozen=True):
    """RFC 9457. code: of `lora_contract.errors.ERRORS`. hint: of that row, or a more specific one."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    retryable: bool = False
    request_id: str = ""
    findings: list[Finding] = []
    current: Any = None


class Identity(Response, frozen=True):
    """The caller. role: its highest. namespace: the one of its only grant; None: see `grants`."""

    name: str
    role: str
    namespace: str | None = None
    anonymous: bool = False
    grants: list[Grant] = []
