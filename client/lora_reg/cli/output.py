"""The only code that prints.

human: text for people. json: one document with a stable `schema`. quiet: ids, one a line. Data goes to stdout, messages
to stderr. On a terminal lines break between words, and states are coloured unless NO_COLOR is set. Text from elsewhere
cannot control the terminal: unprintable characters are escaped.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from typing import Any, Final, Literal, TextIO

import msgspec

from lora_contract.errors import RegistryError
from lora_reg.formatting.text import Line, Tone, Word, clean, words_of, wrap

Mode = Literal["human", "json", "quiet"]

_CODES: Final[dict[Tone, str]] = {"good": "32", "warning": "33", "bad": "31", "faint": "2"}
_PREFIXES: Final[dict[str, Tone]] = {
    "error:": "bad",
    "warning:": "warning",
    "note:": "faint",
    "hint:": "faint",
    "next:": "faint",
}


class Output:
    """Prints the result of a command, and messages about it."""

    def __init__(self, mode: Mode, *, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.mode = mode
        self._out = stdout or sys.stdout
        self._err = stderr or sys.stderr

    @property
    def unicode(self) -> bool:
        """Whether stdout can show more than ASCII."""
        return (getattr(self._out, "encoding", None) or "").lower().startswith("utf")

    def result(self, schema: str, document: Any, *, human: Iterable[str], quiet: Iterable[str]) -> None:
        """Print the result in the form asked for. schema: `lora-reg/<what>/<version>`; document: a JSON object."""
        if self.mode == "json":
            self._raw(json.dumps({"schema": schema, **to_object(document)}, indent=2), self._out)
            return
        for line in quiet if self.mode == "quiet" else human:
            self._print(line, self._out)

    def text(self, text: str) -> None:
        """Print a document of another format (a script, XML) as it is."""
        self._raw(text, self._out)

    def line(self, text: str) -> None:
        """Print one line of a result that grows while the command waits. For human mode only."""
        self._print(text, self._out)
        self._out.flush()

    def note(self, text: str) -> None:
        """Print a message for people, unless only ids are wanted."""
        if self.mode != "quiet":
            self._message(text)

    def say(self, text: str) -> None:
        """Print a message that the person must see for the command to go on."""
        self._message(text)
        self._err.flush()

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")

    def next(self, command: str) -> None:
        """Print the command that a person is likely to want next."""
        if self.mode == "human":
            self._message(f"next: {command}")

    def problem(self, error: RegistryError) -> int:
        """Print an error, its findings and its hints. Returns the exit status."""
        if self.mode == "json":
            self._raw(json.dumps(problem_document(error), indent=2), self._out)
        findings = [finding for finding in error.facts.get("findings", ()) if isinstance(finding, dict)]
        self._message(f"error: {error.detail}")
        if len(findings) > 1 or any(finding.get("message") != error.detail for finding in findings):
            for finding in findings:
                self._print(_finding_line(finding), self._err)
        hints = [error.hint, *(str(finding["hint"]) for finding in findings if finding.get("hint"))]
        for hint in dict.fromkeys(hints):
            self._message(f"hint: {hint}")
        return error.kind.exit

    def findings(self, findings: Iterable[Any]) -> None:
        """Print the warnings and notes of a check that passed."""
        if self.mode != "quiet":
            for finding in findings:
                self._print(_finding_line(to_object(finding)), self._err)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before an irreversible change. Raises `usage` if there is no terminal to ask on, `conflict` on no."""
        if yes:
            return
        if not (sys.stdin.isatty() and self._err.isatty()):
            raise RegistryError("usage", f"{question} There is no terminal to ask on.", hint="Add --yes.")
        import click

        if not click.confirm(clean(question), default=False, err=True):
            raise RegistryError("conflict", "Nothing was changed.", hint="Answer yes, or add --yes.")

    def _message(self, text: str) -> None:
        prefix, _, rest = text.partition(" ")
        tone = _PREFIXES.get(prefix)
        line = Line(Word(prefix, tone), f" {rest}", hang=len(prefix) + 1) if tone else text
        self._print(line, self._err)

    def _print(self, line: str, stream: TextIO) -> None:
        hang = getattr(line, "hang", 0)
        cleaned = Line(*(Word(clean(word), word.tone) for word in words_of(line)), hang=hang)
        if not stream.isatty():
            self._raw(cleaned, stream)
            return
        coloured = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        for words in wrap(cleaned, shutil.get_terminal_size().columns):
            self._raw("".join(_coloured(word) if coloured else word for word in words), stream)

    def _raw(self, text: str, stream: TextIO) -> None:
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
    """The value as JSON types."""
    return msgspec.to_builtins(value, enc_hook=str)


def _coloured(word: Word) -> str:
    return f"\x1b[{_CODES[word.tone]}m{word}\x1b[0m" if word.tone else word


def _finding_line(finding: dict[str, Any]) -> Line:
    severity = finding.get("severity", "error")
    mark = (
        Word("-", "bad")
        if severity == "error"
        else Word(f"{severity}:", "warning" if severity == "warning" else "faint")
    )
    return Line("  ", mark, f" {finding.get('message', '')}", hang=4)
