"""Evaluation sets: JSON lines, each a record of `text`, or of `prompt` and `completion`.

They are untrusted text: every length is bounded, and a line that is not a record is named by its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from lora_reg.spec import canonical
from lora_reg.spec.errors import RegistryError

MAX_LINE: Final = 1 << 20
MAX_RECORDS: Final = 100_000
_KEYS: Final = ({"text"}, {"prompt", "completion"})


class Record(msgspec.Struct, frozen=True):
    """What is predicted, and what stands before it. prompt: empty for a record of `text`."""

    text: str
    prompt: str = ""


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
        raise _bad(number, f"{told}; expected text, or prompt and completion")
    if not all(isinstance(value, str) for value in found.values()):
        raise _bad(number, "holds what is no string")
    record = Record(found["text"]) if "text" in found else Record(found["completion"], found["prompt"])
    if not record.text:
        raise _bad(number, "has nothing to predict")
    return record


def _bad(number: int, what: str) -> RegistryError:
    return RegistryError("rejected", f"Line {number} of the evaluation set {what}.", way_out="Mend that line.")
