"""Patterns of names, with `*` for any text."""

from __future__ import annotations


def matches(pattern: str, text: str) -> bool:
    """Match in linear time: each literal between stars is matched at its leftmost position.

    The text may be a pattern itself: if it matches, every text that it matches is matched by `pattern` too.
    """
    if "*" not in pattern:
        return pattern == text
    first, *middle, last = pattern.split("*")
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for literal in middle:
        found = text.find(literal, at, end)
        if found < 0:
            return False
        at = found + len(literal)
    return True
