"""Canonical JSON and strict JSON.

Canonical bytes: UTF-8, object keys sorted by code point, no white space, no NaN or infinity, integers as digits,
floats in Python's shortest round-trip form. The same value gives the same bytes in every process, so a digest of
them is an identity (of recipes and manifests). This is RFC 8785 except for the format of floats, which manifests do
not contain and recipes carry as decimal numbers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from lora_contract import json_text
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError

MAX_DEPTH = 32
MAX_VALUES = 600_000
"""Of a document that is parsed: at most 60 MB of objects."""


def dumps(value: Any) -> bytes:
    """Encode a JSON value (dict with str keys, list, str, int, float, bool, None) as canonical bytes.

    Raises RegistryError `invalid-request` for NaN, infinity and values that are not JSON.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise RegistryError("invalid-request", f"The value has no canonical JSON form: {error}.") from error


def digest(value: Any) -> Digest:
    """The digest of the canonical bytes."""
    return Digest.of(dumps(value))


def loads_strict(
    data: bytes | bytearray | memoryview,
    *,
    what: str,
    max_bytes: int,
    max_depth: int = MAX_DEPTH,
    max_values: int = MAX_VALUES,
) -> Any:
    """Parse untrusted JSON: bounded size, depth and number of values, all measured before anything is built; no
    duplicate key, no NaN, valid UTF-8 without surrogates.

    `what` names the document in the message. Raises RegistryError `rejected`.
    """
    raw = measured(data, what=what, max_bytes=max_bytes, max_depth=max_depth, max_values=max_values)[0]

    def constant(name: str) -> Any:
        raise RegistryError("rejected", f"{what} contains {name}, which is not a JSON number.")

    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=lambda items: unique(items, what),
            parse_constant=constant,
            parse_float=_finite,
        )
        if json_text.has_surrogate(raw):
            dumps(value)  # names the surrogate
        return value
    except RegistryError as error:
        if error.code == "rejected":
            raise
        raise RegistryError("rejected", f"{what} is not valid JSON: {error.detail}") from error
    except (ValueError, RecursionError) as error:
        raise RegistryError("rejected", f"{what} is not valid JSON: {error}.") from error


def check_strict(
    data: bytes | bytearray | memoryview, *, what: str, max_bytes: int, max_values: int, max_depth: int = MAX_DEPTH
) -> set[str]:
    """Check JSON as `loads_strict` does, without building it. Return the keys of the outermost object.

    Raises RegistryError `rejected`.
    """
    raw = measured(data, what=what, max_bytes=max_bytes, max_depth=max_depth, max_values=max_values)[0]
    if (why := json_text.fault(raw)) is not None:
        raise RegistryError("rejected", f"{what} {why}.")
    return json_text.top_level_keys(raw)


def measured(
    data: bytes | bytearray | memoryview, *, what: str, max_bytes: int, max_depth: int, max_values: int
) -> tuple[bytes, json_text.Outline]:
    """Return the text and its outline. Raises RegistryError `rejected` if it exceeds a limit."""
    if len(data) > max_bytes:
        raise RegistryError("rejected", f"{what} has {len(data)} bytes; the maximum is {max_bytes}.")
    raw = bytes(data)
    outline = json_text.outline(raw, max_values=max_values)
    if outline is None:
        raise RegistryError("rejected", f"{what} has more than {max_values} values.")
    if outline.deeper_than(max_depth):
        raise RegistryError("rejected", f"{what} is nested deeper than {max_depth} levels.")
    return raw, outline


def unique(items: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    """Make an object. Raises RegistryError `rejected` if a key occurs twice."""
    result = dict(items)
    if len(result) < len(items):
        twice = next(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        raise RegistryError("rejected", f"{what} contains the key {twice[:80]!r} twice; keys must be unique.")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("Out of range float values are not JSON compliant")
    return value
