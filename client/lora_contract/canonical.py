"""Canonical JSON and strict JSON.

Canonical bytes: UTF-8, object keys sorted by code point, no white space, no NaN or infinity, integers as digits,
floats in Python's shortest round-trip form. The same value gives the same bytes in every process, so a digest of
them is an identity (of recipes and manifests). This is RFC 8785 except for the format of floats, which manifests do
not contain and recipes carry as decimal numbers.
"""

from __future__ import annotations

import json
from typing import Any

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError

MAX_DEPTH = 32


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


def loads_strict(data: bytes | bytearray | memoryview, *, what: str, max_bytes: int, max_depth: int = MAX_DEPTH) -> Any:
    """Parse untrusted JSON: bounded size and depth, no duplicate key, no NaN, valid UTF-8 without surrogates.

    `what` names the document in the message. Raises RegistryError `rejected`.
    """
    if len(data) > max_bytes:
        raise RegistryError("rejected", f"{what} has {len(data)} bytes; the maximum is {max_bytes}.")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in items:
            if key in result:
                raise RegistryError("rejected", f"{what} contains the key {key[:80]!r} twice; keys must be unique.")
            result[key] = value
        return result

    def constant(name: str) -> Any:
        raise RegistryError("rejected", f"{what} contains {name}, which is not a JSON number.")

    raw = bytes(data)
    if _depth(raw) > max_depth:
        raise RegistryError("rejected", f"{what} is nested deeper than {max_depth} levels.")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
        dumps(value)  # finds lone surrogates and floats that overflow to infinity
        return value
    except RegistryError as error:
        if error.code == "rejected":
            raise
        raise RegistryError("rejected", f"{what} is not valid JSON: {error.detail}") from error
    except (ValueError, RecursionError) as error:
        raise RegistryError("rejected", f"{what} is not valid JSON: {error}.") from error


_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _depth(raw: bytes) -> int:
    """The deepest nesting of brackets outside strings, found without recursion.

    Escapes are removed first (left to right, so `\\\\"` ends a string and `\\"` does not); then every second segment
    between quotes lies outside strings. The count may be wrong for text that is not JSON, which the parser refuses.
    """
    outside = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    deepest = depth = 0
    for byte in outside.translate(None, _NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
