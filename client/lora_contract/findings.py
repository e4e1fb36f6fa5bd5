"""Findings: what a check has to say, structured, all of it and not the first only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from lora_contract.errors import ErrorCode, RegistryError

Severity = Literal["error", "warning", "note"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finding. `message` is one sentence that holds the other fields; `code` is stable, kebab-case.

    where: the tensor, module or config key; None where the finding is about a file or the whole.
    """

    code: str
    severity: Severity
    message: str
    file: str | None = None
    where: str | None = None
    found: str | None = None
    expected: str | None = None
    hint: str | None = None


def refuse(findings: Sequence[Finding]) -> None:
    """Raise RegistryError `rejected` with all findings if one of them is an error.

    `base-mismatch` is raised instead if that is the only error, since its hint differs.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    named = all(finding.code == "base-mismatch" for finding in errors)
    code: ErrorCode = "base-mismatch" if named else "rejected"
    raise RegistryError(
        code,
        first.message + more,
        hint=first.hint,
        findings=[msgspec.to_builtins(finding) for finding in findings],
    )
