"""Collection of findings, with a limit per code: one fault may repeat in every tensor."""

from __future__ import annotations

from lora_contract.errors import RegistryError
from lora_contract.findings import Finding, Severity

CONFIG: str = "adapter_config.json"
WEIGHTS: str = "adapter_model.safetensors"
_MOST_PER_CODE = 40


class CheckReport:
    """Findings in the order they were made: the first 40 of each code, and the number of the others."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._counts: dict[str, int] = {}

    def add(
        self,
        code: str,
        message: str,
        *,
        severity: Severity = "error",
        file: str | None = WEIGHTS,
        where: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self._counts[code] = self._counts.get(code, 0) + 1
        if self._counts[code] <= _MOST_PER_CODE:
            self._findings.append(Finding(code, severity, message, file, where, found, expected, hint))

    def add_error(self, code: str, error: RegistryError, *, file: str, where: str | None = None) -> None:
        self.add(code, error.detail, file=file, where=where, hint=error.hint)

    @property
    def refused(self) -> bool:
        return any(finding.severity == "error" for finding in self._findings)

    def findings(self) -> list[Finding]:
        rest = [
            Finding(code, "note", f"{count - _MOST_PER_CODE} more findings of the kind {code!r} are not listed.")
            for code, count in self._counts.items()
            if count > _MOST_PER_CODE
        ]
        return self._findings + rest
