"""What all of the API has: its path, the two roots of its structs, errors, and who is asking."""

from __future__ import annotations

from typing import Any

import msgspec

from lora_contract.findings import Finding

API = "/api/v1"


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Response(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Problem(Response, frozen=True):
    """RFC 9457. `code` is the row of `spec.errors.ERRORS`; `hint` its sentence or a better one."""

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


class Principal(Response, frozen=True):
    """Who is asking. namespace None: the role holds everywhere. role: reader, writer or admin."""

    name: str
    role: str
    namespace: str | None = None
    anonymous: bool = False
