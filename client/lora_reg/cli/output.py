"""The only code that prints.

human: text for people. json: one document with a stable `schema`. quiet: ids, one a line. Data goes to stdout, talk to
stderr. There is no colour. Text that came from elsewhere cannot steer the terminal: what does not print is escaped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, Literal, TextIO

import msgspec

from lora_contract.errors import RegistryError
from lora_reg.formatting.text import clean

Mode = Literal["human", "json", "quiet"]


class Output:
    """Where a command's answer goes."""

    def __init__(self, mode: Mode, *, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.mode = mode
        self._out = stdout or sys.stdout
        self._err = stderr or sys.stderr

    @property
    def unicode(self) -> bool:
        """Whether stdout can show more than ASCII."""
        return (getattr(self._out, "encoding", None) or "").lower().startswith("utf")

    def result(self, schema: str, document: Any, *, human: Iterable[str], quiet: Iterable[str]) -> None:
        """The answer, in the form that was asked for. schema: `lora-reg/<what>/<version>`; document: a JSON object."""
        if self.mode == "json":
            self._print(json.dumps({"schema": schema, **to_object(document)}, indent=2), self._out)
            return
        for line in quiet if self.mode == "quiet" else human:
            self._print(clean(line), self._out)

    def line(self, text: str) -> None:
        """One line of an answer that grows while it is waited for; to be used in human mode alone."""
        self._print(clean(text), self._out)
        self._out.flush()

    def note(self, text: str) -> None:
        """A word to the person at the terminal; none where only ids are wanted."""
        if self.mode != "quiet":
            self._print(clean(text), self._err)

    def next(self, command: str) -> None:
        """The command that a person is likely to want now."""
        if self.mode == "human":
            self._print(clean(f"next: {command}"), self._err)

    def problem(self, error: RegistryError) -> int:
        """Tell an error, all its findings and the way out. Returns the exit status."""
        if self.mode == "json":
            self._print(json.dumps(problem_document(error), indent=2), self._out)
        findings = [finding for finding in error.facts.get("findings", ()) if isinstance(finding, dict)]
        self._print(f"error: {clean(error.detail)}", self._err)
        if len(findings) > 1 or any(finding.get("message") != error.detail for finding in findings):
            for finding in findings:
                self._print(clean(_finding_line(finding)), self._err)
        ways = [error.hint, *(str(finding["hint"]) for finding in findings if finding.get("hint"))]
        for way in dict.fromkeys(ways):
            self._print(f"hint: {clean(way)}", self._err)
        return error.kind.exit

    def findings(self, findings: Iterable[Any]) -> None:
        """Warnings and notes of a check that did not refuse."""
        for finding in findings:
            self.note(_finding_line(to_object(finding)))

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before what cannot be undone. Raises `usage` where nobody is there to answer, `conflict` on no."""
        if yes:
            return
        if not (sys.stdin.isatty() and self._err.isatty()):
            raise RegistryError("usage", f"{question} Nobody is there to ask.", hint="Add --yes.")
        import click

        if not click.confirm(clean(question), default=False, err=True):
            raise RegistryError("conflict", "Nothing was done.", hint="Answer yes, or add --yes.")

    def _print(self, text: str, stream: TextIO) -> None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def problem_document(error: RegistryError) -> dict[str, Any]:
    """An error as a document: the fields of a problem (RFC 9457) and the exit status."""
    return {
        "schema": "lora-reg/problem/1",
        "type": f"urn:lora-reg:error:{error.code}",
        "title": error.code.replace("-", " "),
        "status": error.kind.status,
        "exit": error.kind.exit,
        "code": error.code,
        "detail": error.detail,
        "hint": error.hint,
        "retryable": error.kind.retryable,
        "request_id": error.facts.get("request_id", ""),
        "findings": to_object(error.facts.get("findings", [])),
        "current": to_object(error.facts.get("current")),
    }


def to_object(value: Any) -> Any:
    return msgspec.to_builtins(value, enc_hook=str)


def _finding_line(finding: dict[str, Any]) -> str:
    severity = finding.get("severity", "error")
    return f"  {'-' if severity == 'error' else severity + ':'} {finding.get('message', '')}"
