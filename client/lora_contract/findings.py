"""Findings: the structured results of a check, which reports all problems rather than the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from lora_contract.errors import ErrorCode, RegistryError

Severity = Literal["error", "warning", "note"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result of a check.

    Args:
        code: stable, in kebab case.
        message: one sentence that includes the other fields.
        where: the tensor, module or config key; None if the finding concerns a file or the whole adapter.
        count: of the places with the same fault. also: the first of the others, besides `where`.
    """

    code: str
    severity: Severity
    message: str
    file: str | None = None
    where: str | None = None
    found: str | None = None
    expected: str | None = None
    hint: str | None = None
    count: int = 1
    also: list[str] = []


def refuse(findings: Sequence[Finding]) -> None:
    """Raise RegistryError `rejected` with all findings if one of them is an error, or `base-mismatch` if that is the
    only kind of error, since its hint differs."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    only_base = all(finding.code == "base-mismatch" for finding in errors)
    code: ErrorCode = "base-mismatch" if only_base else "rejected"
    raise RegistryError(
        code,
        first.message + more,
        hint=first.hint,
        findings=[msgspec.to_builtins(finding) for finding in findings],
    )
