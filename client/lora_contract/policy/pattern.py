"""Tag patterns, `namespace/name:tag` with `*` for any text in each part, and their precedence.

The most specific pattern wins, compared part by part from the left: a part without `*` precedes one with it, then the
one with more literal characters. `acme/*:prod` precedes `*/sql:prod`, and `acme/sql-*:prod` precedes `acme/*:prod`.
Ties, such as `a*` and `*a`, are broken by the order of the texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from lora_contract import glob, reference
from lora_contract.errors import RegistryError

_WILD: Final = re.compile(r"[A-Za-z0-9._*-]+\Z")
_LONGEST: Final = (reference.MAX_NAMESPACE, reference.MAX_NAME, 128)

Parts = tuple[str, str, str]


def parse_pattern(text: str) -> Parts:
    """Split a pattern into namespace, name and tag; the first two in lower case, as case does not distinguish them.

    Raises RegistryError `invalid-request`, `invalid-reference`.
    """
    path, colon, tag = text[:1024].partition(":")
    namespace, slash, name = path.partition("/")
    if not colon or not slash:
        raise _invalid(text, "expected namespace/name:tag, each part with `*` for any text")
    parts = (namespace, name, tag)
    for part, longest in zip(parts, _LONGEST, strict=True):
        if len(part) > longest or not _WILD.match(part):
            raise _invalid(
                text, f"its part {part[:120]!r} is empty, too long or contains a character not allowed in names"
            )
    namespace, name = namespace.lower(), name.lower()
    if "*" not in namespace:
        reference.check_namespace(namespace)
    if "*" not in name:
        reference.check_name(name)
    if "*" not in tag:
        reference.check_tag(tag)
    return namespace, name, tag


def canonical_pattern(text: str) -> str:
    """The spelling of a pattern under which its policy is stored."""
    namespace, name, tag = parse_pattern(text)
    return f"{namespace}/{name}:{tag}"


def governing(patterns: Iterable[str], namespace: str, name: str, tag: str) -> str | None:
    """The pattern that governs a tag; None if none matches. The patterns must be valid."""
    subject = (namespace, name, tag)
    found = [text for text in patterns if all(map(glob.matches, parse_pattern(text), subject))]
    return min(found, key=_rank, default=None)


def _rank(text: str) -> tuple[object, ...]:
    """A sort key: smaller is more specific."""
    order = [("*" in part, -len(part.replace("*", ""))) for part in parse_pattern(text)]
    return (*order, text)


def _invalid(text: str, why: str) -> RegistryError:
    return RegistryError("invalid-request", f"{text[:200]!r} is not a tag pattern: {why}.")
