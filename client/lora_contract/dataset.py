"""Evaluation sets: JSON lines, each a record of `text`, or of `prompt` and `completion`.

They are untrusted text: every length is bounded, and a line that is not a record is named by its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

import msgspec

from lora_contract import canonical
from lora_contract.errors import RegistryError
from lora_contract.regex import Regex
from lora_contract.regex_syntax import PatternError

FILE: Final = "data.jsonl"
"""The one file of a version of kind `dataset`."""

MAX_BYTES: Final = 256 << 20
MAX_LINE: Final = 1 << 20
MAX_RECORDS: Final = 100_000
_KEYS: Final = ({"text"}, {"prompt", "completion"}, {"prompt", "expect"})

Form = Literal["text", "completion", "mixed", "answers"]


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an answer has to be: one of these. exact: this text, but for white space around it. regex: matched as a
    whole, in the subset of `lora_contract.regex`. json_schema: JSON that this schema accepts."""

    exact: str | None = None
    regex: str | None = None
    json_schema: dict[str, Any] | None = None

    @property
    def kinds(self) -> int:
        return sum(value is not None for value in (self.exact, self.regex, self.json_schema))


class Record(msgspec.Struct, frozen=True):
    """What is predicted, and what stands before it. prompt None: a record of `text`. expect: of an answer that is asked
    for; `text` is then empty."""

    text: str
    prompt: str | None = None
    expect: Expectation | None = None


class DatasetFacts(msgspec.Struct, frozen=True):
    """What is worth knowing of an evaluation set: stored with its version and shown. form: of its records."""

    records: int
    bytes: int
    form: Form


def check_dataset(pieces: Iterable[bytes]) -> DatasetFacts:
    """Read a whole file in pieces of any size, a line of it in memory at a time. Raises RegistryError `rejected`."""
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for piece in pieces:
            size += len(piece)
            if size > MAX_BYTES:
                raise RegistryError("rejected", f"The evaluation set has more than {MAX_BYTES} bytes.")
            yield piece

    records = texts = answers = 0
    for record in parse_records(split_lines(counted())):
        records += 1
        texts += record.prompt is None
        answers += record.expect is not None
    if 0 < answers < records:
        raise RegistryError(
            "rejected", "A set asks either for losses or for answers, and this one has records of both."
        )
    form: Form = "answers" if answers else "text" if texts == records else "mixed" if texts else "completion"
    return DatasetFacts(records, size, form)


def split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends. Raises RegistryError `rejected` before more than MAX_LINE bytes of one are held."""
    rest, number = b"", 1
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        number += len(whole)
        if len(rest) > MAX_LINE:
            raise _bad(number, f"has more than {MAX_LINE} bytes")
    if rest:
        yield rest


def parse_records(lines: Iterable[bytes]) -> Iterator[Record]:
    """The records, in order. Empty lines are passed over. Raises RegistryError `rejected`."""
    count = 0
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise _bad(number, f"has {len(line)} bytes; at most {MAX_LINE} are read")
        if not line.strip():
            continue
        count += 1
        if count > MAX_RECORDS:
            raise _bad(number, f"is beyond the {MAX_RECORDS} records that are read")
        yield _record(number, canonical.loads_strict(line, what=f"Line {number}", max_bytes=MAX_LINE))
    if not count:
        raise RegistryError("rejected", "The evaluation set has no records; expected one JSON object a line.")


def _record(number: int, found: object) -> Record:
    if not isinstance(found, dict) or set(found) not in _KEYS:
        told = f"has the keys {', '.join(sorted(map(str, found)))[:80]}" if isinstance(found, dict) else "is no object"
        raise _bad(number, f"{told}; expected text, or prompt and completion, or prompt and expect")
    if "expect" in found:
        return _asked(number, found["prompt"], found["expect"])
    if not all(isinstance(value, str) for value in found.values()):
        raise _bad(number, "holds what is no string")
    record = Record(found["text"]) if "text" in found else Record(found["completion"], found["prompt"])
    if not record.text:
        raise _bad(number, "has nothing to predict")
    return record


def _asked(number: int, prompt: object, expect: object) -> Record:
    try:
        wanted = msgspec.convert(expect, Expectation)
    except msgspec.ValidationError as error:
        raise _bad(number, f"expects what cannot be judged: {error}") from error
    if not isinstance(prompt, str) or wanted.kinds != 1:
        raise _bad(number, "holds no prompt with one of exact, regex and json_schema")
    if wanted.regex is not None:
        try:
            Regex(wanted.regex)
        except PatternError as error:
            raise _bad(number, f"expects a pattern that is not taken: {error}") from error
    return Record("", prompt, wanted)


def _bad(number: int, what: str) -> RegistryError:
    return RegistryError("rejected", f"Line {number} of the evaluation set {what}.", hint="Mend that line.")
