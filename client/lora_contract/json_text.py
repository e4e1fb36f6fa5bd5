"""JSON text before it is parsed: how much is in it, and whether it is valid, in memory that does not grow with it.

A parser turns `{}` of two bytes into an object of 64; text of strangers is measured first.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from lora_contract import decoding

MAX_KEYS: Final = 500_000
"""Of an object and those around it, in text that is only checked. The largest vocabularies have 262,144."""

_BLOCK: Final = 128 * 1024
_BACKSLASH: Final = ord("\\")
_BACKSLASHES: Final = re.compile(rb"\\*+")
_OPENING: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")

# Possessive: neither can backtrack, so both take linear time and no memory.
_TOKENS: Final = re.compile(rb'"((?:[^"\\]++|\\.)*+)"([ \t\r\n]*+:)?|[{}]', re.DOTALL)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class Outline(NamedTuple):
    """values: an upper bound of the number of values. keys: of all objects. brackets: all of them, `{` as `[`."""

    values: int
    keys: int
    negative: bool
    brackets: bytes

    def deeper_than(self, limit: int) -> bool:
        """Whether brackets are nested deeper. Each round removes the innermost level."""
        left = self.brackets
        for _ in range(limit):
            shorter = left.replace(b"[]", b"")
            if len(shorter) == len(left):
                break  # nothing is left, or they do not pair, which the parser refuses
            left = shorter
        return b"[]" in left or left.count(b"[") > limit


def outline(raw: bytes, *, max_values: int) -> Outline | None:
    """Measure text, which may be no JSON; None if it has more than `max_values` values or keys."""
    opened = commas = keys = 0
    negative = False
    brackets: list[bytes] = []
    for outside in _outside_strings(raw):
        found = outside.translate(_OPENING, _NOT_BRACKETS)
        opened += found.count(b"[")
        commas += outside.count(b",")
        keys += outside.count(b":")
        negative = negative or b"-" in outside
        brackets.append(found)
        if opened + commas > max_values or keys > max_values:
            return None
    return Outline(opened + commas + 1, keys, negative, b"".join(brackets))


def fault(raw: bytes) -> str | None:
    """Return why text is not strict JSON, as the rest of a sentence; None if it is. Nothing of it is built.

    Measure it before: depth and number of keys must be bounded.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(raw), _BLOCK):
            decoder.decode(raw[start : start + _BLOCK])
        decoder.decode(b"", final=True)
        decoding.decode(raw, msgspec.Raw)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON: {error}"
    if has_surrogate(raw):
        return "contains the escape of a lone surrogate"
    stack: list[set[bytes]] = []
    keys = 0
    for token in _TOKENS.finditer(raw):
        if token[2] is not None:
            key = token[1] if b"\\" not in token[1] else json.loads(b'"' + token[1] + b'"').encode()
            if key in stack[-1]:
                return f"contains the key {key.decode()[:80]!r} twice; keys must be unique"
            stack[-1].add(key)
            keys += 1
            if keys > MAX_KEYS:
                return f"has objects of more than {MAX_KEYS} keys"
        elif token[0] == b"{":
            stack.append(set())
        elif token[0] == b"}":
            keys -= len(stack.pop())
    return None


def top_level_keys(raw: bytes) -> set[str]:
    """The keys of the outermost object of valid JSON; empty for another value."""
    try:
        return set(decoding.decode(raw, dict[str, msgspec.Raw]))
    except msgspec.ValidationError:
        return set()


def has_surrogate(raw: bytes) -> bool:
    """Whether an escape of a surrogate has no partner."""
    if _SURROGATE.search(raw) is None:
        return False
    try:
        for token in _TOKENS.finditer(raw):
            if token[1] is not None and _SURROGATE.search(token[1]):
                json.loads(token[0].removesuffix(token[2] or b"")).encode()
    except ValueError:
        return True
    return False


def _outside_strings(raw: bytes) -> Iterator[bytes]:
    """Yield what is outside strings, block by block."""
    start, inside = 0, False
    while start < len(raw):
        end = min(start + _BLOCK, len(raw))
        if raw[end - 1] == _BACKSLASH:  # an escape is not cut
            match = _BACKSLASHES.match(raw, end)
            end = min((match.end() if match else end) + 1, len(raw))
        # Escapes are removed from left to right, so `\\\\"` ends a string and `\\"` does not.
        parts = raw[start:end].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(parts[1 if inside else 0 :: 2])
        inside ^= len(parts) % 2 == 0
        start = end
