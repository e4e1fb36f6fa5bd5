"""The closed table of error codes.

One row per code gives the HTTP status, the exit status of the command line, whether a retry can help, and the hint:
one sentence that says what to do. HTTP, the Hub dialect and the client read this table; no code identifies an error by
its text. Exit statuses: 1 other failure, 2 usage error, 3 not found, 4 not signed in or not allowed, 5 conflict,
6 refused by a check, 7 integrity, 8 still pending, 9 rate limit or quota, 10 server or storage unavailable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

ErrorCode = Literal[
    "internal",
    "usage",
    "invalid-request",
    "invalid-reference",
    "not-found",
    "method-not-allowed",
    "deleted",
    "expired",
    "unauthenticated",
    "forbidden",
    "conflict",
    "exists",
    "tag-moved",
    "tag-protected",
    "in-use",
    "idempotency-mismatch",
    "rejected",
    "base-mismatch",
    "unsupported",
    "gate-refused",
    "tag-gated",
    "not-reproduced",
    "digest-mismatch",
    "size-mismatch",
    "signature-mismatch",
    "corrupt",
    "job-failed",
    "pending",
    "too-large",
    "unsupported-media-type",
    "rate-limited",
    "quota",
    "unavailable",
    "storage-unavailable",
    "local-io",
    "precondition-failed",
    "range-not-satisfiable",
]
"""All codes, in the order of the table below; a type checker verifies the code of each raise."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """A row of the table. hint: one sentence that says what to do."""

    status: int
    exit: int
    hint: str
    retryable: bool = False


ERRORS: Final[dict[ErrorCode, ErrorKind]] = {
    "internal": ErrorKind(500, 1, "Try again; if it persists, report it with the request id.", True),
    "usage": ErrorKind(400, 2, "Correct the request; the detail names what is wrong."),
    "invalid-request": ErrorKind(400, 2, "Correct the request; the detail names the field."),
    "invalid-reference": ErrorKind(400, 2, "Write it as [namespace/]name[:tag or :vN][@sha256:…]."),
    "not-found": ErrorKind(404, 3, "Check the spelling with `lora-reg list`."),
    "method-not-allowed": ErrorKind(405, 2, "Use a method that the API document lists for this path."),
    "deleted": ErrorKind(410, 3, "It was deleted and its name cannot be reused; choose another."),
    "expired": ErrorKind(410, 3, "Start again without a cursor; the registry has exported what it removed."),
    "unauthenticated": ErrorKind(401, 4, "Sign in with `lora-reg login URL`, or set LORA_REG_TOKEN."),
    "forbidden": ErrorKind(403, 4, "Ask an administrator for a token with the required role."),
    "conflict": ErrorKind(409, 5, "Check the current state and decide again."),
    "exists": ErrorKind(409, 5, "Choose another name, or use the existing one."),
    "tag-moved": ErrorKind(412, 5, "The tag was moved in the meantime; check `lora-reg history` and decide again."),
    "tag-protected": ErrorKind(428, 5, "The tag is protected: name the version it points to now with `--expect`."),
    "in-use": ErrorKind(409, 5, "Move or delete what refers to it first; the detail names what you may read."),
    "idempotency-mismatch": ErrorKind(422, 5, "Use a new Idempotency-Key for a different request."),
    "rejected": ErrorKind(422, 6, "Fix the reported problems and push again."),
    "base-mismatch": ErrorKind(
        422, 6, "If it is this base under another name: `lora-reg base alias`; for this push alone: `--accept-base`."
    ),
    "unsupported": ErrorKind(422, 6, "This adapter can be stored and served, but does not support this operation."),
    "gate-refused": ErrorKind(422, 6, "Fix the failed checks, or ask for another policy."),
    "tag-gated": ErrorKind(
        409, 6, "A policy governs the tag: promote the version, which moves the tag if the gate allows it."
    ),
    "not-reproduced": ErrorKind(
        409, 7, "The recipe gave other bytes: compare library versions and backends of both runs."
    ),
    "digest-mismatch": ErrorKind(422, 7, "The bytes differ from their digest; send them again from an unchanged file."),
    "size-mismatch": ErrorKind(422, 7, "The length differs from the announced one; send the whole file again."),
    "signature-mismatch": ErrorKind(422, 7, "Do not use this version; if it is yours, sign it with `lora-reg sign`."),
    "corrupt": ErrorKind(500, 7, "The stored bytes are damaged; ask an administrator to run `lora-registry fsck`."),
    "job-failed": ErrorKind(409, 1, "Read `lora-reg job logs`, fix the cause and start it again."),
    "pending": ErrorKind(202, 8, "It is still running; resume waiting with `lora-reg job wait`."),
    "too-large": ErrorKind(413, 9, "Send less at a time; the detail names the limit."),
    "unsupported-media-type": ErrorKind(415, 2, "Send the header `Content-Type: application/json`."),
    "rate-limited": ErrorKind(429, 9, "Wait for the time in Retry-After and try again.", True),
    "quota": ErrorKind(403, 9, "Delete versions that are not needed, or ask an administrator for a larger quota."),
    "unavailable": ErrorKind(503, 10, "Try again in a moment; if it persists, check the service.", True),
    "storage-unavailable": ErrorKind(503, 10, "The blob store did not answer; try again in a moment.", True),
    "local-io": ErrorKind(500, 1, "Check the path, its permissions and the free space on its disk."),
    "precondition-failed": ErrorKind(412, 5, "Read it again and repeat with the new ETag."),
    "range-not-satisfiable": ErrorKind(416, 2, "Request a range inside the file."),
}


def known_code(code: object) -> ErrorCode | None:
    """Narrow a code from outside (a problem document, a job, a child process); None if this version does not know it:
    a newer peer may send others."""
    return next((known for known in ERRORS if known == code), None)


class RegistryError(Exception):
    """An error with a code of the table. `str()` is the detail and the hint.

    Args:
        detail: one sentence: what was found and what was expected.
        hint: replaces the hint of the table.
        facts: JSON values for programs (`findings`, `current`, ...).
    """

    def __init__(self, code: ErrorCode, detail: str, *, hint: str | None = None, **facts: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.kind = ERRORS[code]
        self.detail = detail
        self.hint = hint or self.kind.hint
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.detail} {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.code, self.detail, self.hint, self.facts))


def _rebuild(code: ErrorCode, detail: str, hint: str, facts: dict[str, Any]) -> RegistryError:
    return RegistryError(code, detail, hint=hint, **facts)
