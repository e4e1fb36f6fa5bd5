"""Collection of findings. Those of one cause are one finding with a count: a fault may repeat in every tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Final

import msgspec

from lora_contract.errors import RegistryError
from lora_contract.findings import Finding, Severity

CONFIG: str = "adapter_config.json"
WEIGHTS: str = "adapter_model.safetensors"
_MOST_PER_CODE: Final = 40
_NUMBERS: Final = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")


class _Cause(msgspec.Struct):
    """The first finding of a cause, and the places of the others."""

    first: Finding
    count: int = 1
    also: list[str] = []

    def finding(self) -> Finding:
        if self.count == 1:
            return self.first
        more = self.count - 1
        places = f": {', '.join(self.also)}" if more <= 2 else f", such as {self.also[0]}"
        message = f"{self.first.message} The same goes for {more} more{places}."
        return msgspec.structs.replace(self.first, message=message, count=self.count, also=self.also)


class CheckReport:
    """Findings in the order they were made, one for each cause: the first 40 causes of each code, and the number of the
    others. Two findings have the same cause if they differ only in where they are, in what was found there and in
    numbers."""

    def __init__(self) -> None:
        self._causes: dict[tuple[object, ...], _Cause] = {}
        self._counts: dict[str, int] = {}
        self._part = ""

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Begin the messages of findings that are added in the block with a part of the adapter."""
        self._part = f"{part}: " if part else ""
        try:
            yield
        finally:
            self._part = ""

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
        finding = Finding(code, severity, self._part + message, file, where, found, expected, hint)
        key = (code, severity, file, hint, _cause(finding))
        known = self._causes.get(key)
        if known is not None:
            known.count += 1
            if len(known.also) < _MOST_PER_CODE and where is not None:
                known.also.append(where)
            return
        self._counts[code] = self._counts.get(code, 0) + 1
        if self._counts[code] <= _MOST_PER_CODE:
            self._causes[key] = _Cause(finding)

    def add_error(self, code: str, error: RegistryError, *, file: str, where: str | None = None) -> None:
        self.add(code, error.detail, file=file, where=where, hint=error.hint)

    def has(self, code: str) -> bool:
        """Whether there is an error with this code."""
        return any((cause.first.code, cause.first.severity) == (code, "error") for cause in self._causes.values())

    def forget(self, codes: Set[str]) -> None:
        """Remove the findings with these codes, of which one that is about to be added is the cause."""
        self._causes = {key: cause for key, cause in self._causes.items() if cause.first.code not in codes}
        for code in codes:
            self._counts.pop(code, None)

    @property
    def refused(self) -> bool:
        return any(cause.first.severity == "error" for cause in self._causes.values())

    def findings(self) -> list[Finding]:
        rest = [
            Finding(code, "note", f"{count - _MOST_PER_CODE} more findings of the kind {code!r} are not listed.")
            for code, count in self._counts.items()
            if count > _MOST_PER_CODE
        ]
        return [cause.finding() for cause in self._causes.values()] + rest


def _cause(finding: Finding) -> str:
    """The message without the place, what was found there, and numbers; whole for a finding on a file."""
    text = finding.message
    if finding.where is None:
        return text
    for part in (finding.where, finding.found, finding.expected):
        if part:
            text = text.replace(part, "…")
    return _NUMBERS.sub("#", text)
