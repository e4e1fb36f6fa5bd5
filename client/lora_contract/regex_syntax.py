"""Parser of the patterns that `regex` matches: from text to a syntax tree, with edge cases read as by `re`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from lora_contract.errors import RegistryError

MAX_PATTERN: Final = 16_384
MAX_NESTING: Final = 50

_CONTROL: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_HEX: Final = {"x": 2, "u": 4, "U": 8}
_REFUSED: Final = {
    "?<=": "lookbehind",
    "?<!": "lookbehind",
    "?>": "an atomic group",
    "?(": "a conditional group",
    "?P=": "a backreference",
}


class PatternError(RegistryError):
    """The pattern is malformed, too large, or uses a feature that cannot be matched in linear time."""

    def __init__(self, detail: str) -> None:
        super().__init__("rejected", detail, hint="List the modules by name instead of using a pattern.")

    def __reduce__(self) -> tuple[type[PatternError], tuple[str]]:
        return PatternError, (self.detail,)


class Node(msgspec.Struct, frozen=True):
    """A node of the syntax tree, by kind.

    Args:
        set: one character in `ranges` or in the classes named in `text` (d, D, w, W, s, S, `.`), or in none if negated.
        assert: `text` is ^, $, b or B.
        cat, alt: of `parts`.
        repeat: `least` to `most` times (None: unbounded).
        look: a lookahead.
    """

    kind: Literal["set", "assert", "cat", "alt", "repeat", "look"]
    parts: tuple[Node, ...] = ()
    text: str = ""
    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False
    least: int = 0
    most: int | None = None

    def accepts(self, character: str) -> bool:
        inside = any(low <= character <= high for low, high in self.ranges) or any(
            _in_class(character, letter) for letter in self.text
        )
        return inside != self.negated


def is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def parse_pattern(pattern: str) -> Node:
    """Parse a pattern. Raises PatternError, naming the malformed or unsupported part."""
    if len(pattern) > MAX_PATTERN:
        raise PatternError(f"The pattern has {len(pattern)} characters; the maximum is {MAX_PATTERN}.")
    parser = _Parser(pattern)
    node = parser.alternation(0)
    if parser.position < len(pattern):
        raise parser.bad("has a ')' without '('")
    return node


def _in_class(character: str, letter: str) -> bool:
    if letter == ".":
        return character != "\n"
    lower = letter.lower()
    if lower == "d":
        found = character.isdecimal()
    elif lower == "w":
        found = is_word(character)
    else:
        found = character.isspace()
    return found == letter.islower()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.position = 0

    def bad(self, why: str) -> PatternError:
        shown = self.pattern if len(self.pattern) <= 80 else self.pattern[:77] + "..."
        return PatternError(f"The pattern {shown!r} {why}.")

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.position)

    def take(self) -> str:
        if self.position >= len(self.pattern):
            raise self.bad("is incomplete")
        self.position += 1
        return self.pattern[self.position - 1]

    def alternation(self, depth: int) -> Node:
        if depth > MAX_NESTING:
            raise self.bad(f"nests groups deeper than {MAX_NESTING}")
        branches = [self.sequence(depth)]
        while self.peek("|"):
            self.position += 1
            branches.append(self.sequence(depth))
        return branches[0] if len(branches) == 1 else Node("alt", tuple(branches))

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.position < len(self.pattern) and self.pattern[self.position] not in "|)":
            node = self.atom(depth)
            if node is not None:
                parts.append(self.repeated(node))
        return Node("cat", tuple(parts))

    def atom(self, depth: int) -> Node | None:
        if self.bounds() is not None:
            raise self.bad("has a quantifier with nothing to repeat")
        character = self.take()
        if character == "(":
            return self.group(depth)
        if character == "[":
            return self.character_class()
        if character == ".":
            return Node("set", text=".")
        if character in "^$":
            return Node("assert", text=character)
        if character == "\\":
            return self.escape()
        return Node("set", ranges=((character, character),))

    def repeated(self, node: Node) -> Node:
        bounds = self.bounds()
        if bounds is None:
            return node
        if node.kind == "assert":
            raise self.bad("repeats an assertion")
        if self.peek("+"):
            raise self.bad("uses a possessive quantifier, which is not supported")
        if self.peek("?"):
            self.position += 1
        node = Node("repeat", (node,), least=bounds[0], most=bounds[1])
        if self.bounds() is not None:
            raise self.bad("has multiple quantifiers in a row")
        return node

    def bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.peek(sign):
                self.position += 1
                return bounds
        if not self.peek("{"):
            return None
        end = self.pattern.find("}", self.position)
        low, comma, high = self.pattern[self.position + 1 : max(end, 0)].partition(",")
        if end < 0 or not (low or comma) or any(c not in "0123456789" for c in low + high):
            return None  # as `re` reads it: a literal brace
        if len(low) > 9 or len(high) > 9:
            raise self.bad("has a quantifier that is too large")
        self.position = end + 1
        least = int(low or 0)
        most = least if not comma else int(high) if high else None
        if most is not None and most < least:
            raise self.bad("has a quantifier whose minimum exceeds its maximum")
        return least, most

    def group(self, depth: int) -> Node | None:
        if not self.peek("?"):
            return self.close(depth)
        for sign, name in _REFUSED.items():
            if self.peek(sign):
                raise self.bad(f"uses {name}, which is not supported")
        if self.peek("?#"):
            end = self.pattern.find(")", self.position)
            if end < 0:
                raise self.bad("has an unterminated comment")
            self.position = end + 1
            return None
        if self.peek("?:"):
            self.position += 2
            return self.close(depth)
        if self.peek("?=") or self.peek("?!"):
            negated = self.peek("?!")
            self.position += 2
            return Node("look", (self.close(depth),), negated=negated)
        if self.peek("?P<"):
            end = self.pattern.find(">", self.position)
            name = self.pattern[self.position + 3 : max(end, 0)]
            if end < 0 or not name.isidentifier():
                raise self.bad("has a group with a malformed name")
            self.position = end + 1
            return self.close(depth)
        raise self.bad("uses flags or an unknown group type, which is not supported")

    def close(self, depth: int) -> Node:
        node = self.alternation(depth + 1)
        if not self.peek(")"):
            raise self.bad("has a '(' without ')'")
        self.position += 1
        # A group that consists of an assertion may be repeated, unlike the bare assertion.
        return Node("cat", (node,))

    def escape(self) -> Node:
        character = self.take()
        if character in "dDwWsS":
            return Node("set", text=character)
        if character in "bB":
            return Node("assert", text=character)
        if character in "AZ":
            return Node("assert", text="^" if character == "A" else "$")
        if character in "123456789":
            raise self.bad("uses a backreference, which is not supported")
        literal = self.literal(character)
        return Node("set", ranges=((literal, literal),))

    def literal(self, character: str) -> str:
        if character in _CONTROL:
            return _CONTROL[character]
        if character in _HEX:
            digits = self.pattern[self.position : self.position + _HEX[character]]
            if len(digits) < _HEX[character] or any(c not in "0123456789abcdefABCDEF" for c in digits):
                raise self.bad(f"has an incomplete escape \\{character}")
            self.position += len(digits)
            if int(digits, 16) > 0x10FFFF:
                raise self.bad("has an escape beyond the last Unicode character")
            return chr(int(digits, 16))
        if character.isascii() and character.isalnum():
            raise self.bad(f"has the escape \\{character}, which is not supported")
        return character

    def character_class(self) -> Node:
        negated = self.peek("^")
        self.position += negated
        ranges: list[tuple[str, str]] = []
        classes = ""
        begin = self.position
        while not self.peek("]") or self.position == begin:
            low, name = self.class_item()
            if name:
                classes += name
            if self.peek("-") and not self.pattern.startswith("-]", self.position):
                self.position += 1
                high, high_name = self.class_item()
                if name or high_name or high < low:
                    raise self.bad("has a malformed range in a character class")
                ranges.append((low, high))
            elif not name:
                ranges.append((low, low))
        self.position += 1
        return Node("set", text=classes, ranges=tuple(ranges), negated=negated)

    def class_item(self) -> tuple[str, str]:
        """(character, "") or ("", class letter)."""
        character = self.take()
        if character != "\\":
            return character, ""
        character = self.take()
        if character in "dDwWsS":
            return "", character
        if character == "b":
            return "\b", ""
        return self.literal(character), ""
