"""Evaluation sets: JSON lines, each a record of `text`, or of `prompt` and `completion`.

They are untrusted text: every length is bounded, and errors name the line by its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

import msgspec

from lora_contract import canonical, decoding
from lora_contract.errors import RegistryError
from lora_contract.regex import Regex
from lora_contract.regex_syntax import PatternError

FILE: Final = "data.jsonl"
"""The only file of a version of kind `dataset`."""

MAX_BYTES: Final = 256 << 20
MAX_LINE: Final = 1 << 20
MAX_RECORDS: Final = 100_000
_KEYS: Final = ({"text"}, {"prompt", "completion"}, {"prompt", "expect"})

DatasetForm = Literal["text", "completion", "mixed", "answers"]


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The expected answer, by exactly one criterion.

    Args:
        exact: equal to this text, ignoring surrounding white space.
        regex: a full match of this pattern, in the subset of `lora_contract.regex`.
        json_schema: JSON that is valid against this schema.
    """

    exact: str | None = None
    regex: str | None = None
    json_schema: dict[str, Any] | None = None

    @property
    def kinds(self) -> int:
        return sum(value is not None for value in (self.exact, self.regex, self.json_schema))


class Record(msgspec.Struct, frozen=True):
    """One record. text: the tokens whose loss is measured. prompt: the context before them; None for a record of
    `text`. expect: the expected answer to the prompt; `text` is then empty."""

    text: str
    prompt: str | None = None
    expect: Expectation | None = None


class DatasetFacts(msgspec.Struct, frozen=True):
    """Summary of an evaluation set, stored with its version. form: of its records."""

    records: int
    bytes: int
    form: DatasetForm


def check_dataset(chunks: Iterable[bytes]) -> DatasetFacts:
    """Check a whole file, read in chunks of any size with one line in memory at a time. Raises RegistryError
    `rejected`."""
    size = 0

    def bounded() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            size += len(chunk)
            if size > MAX_BYTES:
                raise RegistryError("rejected", f"The evaluation set has more than {MAX_BYTES} bytes.")
            yield chunk

    records = texts = answers = 0
    for record in parse_records(split_lines(bounded())):
        records += 1
        texts += record.prompt is None
        answers += record.expect is not None
    if 0 < answers < records:
        raise RegistryError(
            "rejected", "An evaluation set measures either losses or answers; this one has records of both kinds."
        )
    form: DatasetForm = "answers" if answers else "text" if texts == records else "mixed" if texts else "completion"
    return DatasetFacts(records, size, form)


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split chunks into lines without line breaks, buffering at most MAX_LINE bytes of a line. Raises RegistryError
    `rejected`."""
    rest, number = b"", 1
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        number += len(whole)
        if len(rest) > MAX_LINE:
            raise _bad(number, f"has more than {MAX_LINE} bytes")
    if rest:
        yield rest


def parse_records(lines: Iterable[bytes]) -> Iterator[Record]:
    """Parse the records, in order; empty lines are skipped. Raises RegistryError `rejected`."""
    count = 0
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise _bad(number, f"has {len(line)} bytes; the maximum is {MAX_LINE}")
        if not line.strip():
            continue
        count += 1
        if count > MAX_RECORDS:
            raise _bad(number, f"exceeds the maximum of {MAX_RECORDS} records")
        yield _record(number, canonical.loads_strict(line, what=f"Line {number}", max_bytes=MAX_LINE))
    if not count:
        raise RegistryError("rejected", "The evaluation set has no records; expected one JSON object per line.")


def _record(number: int, found: object) -> Record:
    if not isinstance(found, dict) or set(found) not in _KEYS:
        if not isinstance(found, dict):
            problem = "is not an object"
        else:
            problem = f"has the keys {', '.join(sorted(map(str, found)))[:80]}"
        raise _bad(number, f"{problem}; expected text, or prompt and completion, or prompt and expect")
    if "expect" in found:
        return _answer_record(number, found["prompt"], found["expect"])
    if not all(isinstance(value, str) for value in found.values()):
        raise _bad(number, "has a value that is not a string")
    record = Record(found["text"]) if "text" in found else Record(found["completion"], found["prompt"])
    if not record.text:
        raise _bad(number, "has no text to predict")
    return record


def _answer_record(number: int, prompt: object, expect: object) -> Record:
    try:
        wanted = decoding.convert(expect, Expectation)
    except msgspec.ValidationError as error:
        raise _bad(number, f"has an invalid `expect`: {error}") from error
    if not isinstance(prompt, str) or wanted.kinds != 1:
        raise _bad(number, "needs a prompt that is a string and exactly one of exact, regex and json_schema")
    if wanted.regex is not None:
        try:
            Regex(wanted.regex)
        except PatternError as error:
            raise _bad(number, f"expects an unsupported pattern: {error}") from error
    return Record("", prompt, wanted)


def _bad(number: int, what: str) -> RegistryError:
    return RegistryError("rejected", f"Line {number} of the evaluation set {what}.", hint="Correct that line.")
