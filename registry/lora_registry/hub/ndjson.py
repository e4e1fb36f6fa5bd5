"""Read the body of a commit as it arrives: lines of JSON, of which some hold a whole file in base64. Pure.

Only a line without its file is ever in memory. The content of a file is passed on in pieces, wherever in its line it
is: base64 has neither quotes nor backslashes, so its string ends with the next quote.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from lora_contract import decoding
from lora_contract.errors import RegistryError

MAX_LINE: Final = 64 * 1024
"""Bytes of a line without its content: a path has 255, a description a few thousand."""
MAX_LINES: Final = 10_000

_CONTENT: Final = re.compile(rb'"content"\s*:\s*"')


class Inbox(Protocol):
    """What takes the files of a commit."""

    def write(self, data: bytes) -> None:
        """Take the next bytes of the file that is being received."""

    def end(self, path: str) -> None:
        """Take the file as complete, under this path."""


class Lines:
    """Parses the lines of one commit.

    on_line: called with key and value of each line except files, in order. Raises RegistryError `invalid-request`,
    `too-large`.
    """

    def __init__(self, inbox: Inbox, on_line: Callable[[str, dict[str, Any]], None]) -> None:
        self._inbox = inbox
        self._on_line = on_line
        self._head = b""
        self._content = False
        self._has_file = False
        self._rest = b""
        self._padded = False
        self._count = 0

    def feed(self, data: bytes) -> None:
        while data:
            data = self._feed_content(data) if self._content else self._feed_line(data)

    def end(self) -> None:
        """Parse a last line without a line break."""
        if self._content:
            raise _bad("The body ends inside a file.")
        if self._head.strip():
            self._line()

    def _feed_line(self, data: bytes) -> bytes:
        piece, newline, after = data.partition(b"\n")
        start = max(0, len(self._head) - 32)
        self._head += piece
        found = None if self._has_file else _CONTENT.search(self._head, start)
        if found is not None and b"\n" not in self._head[: found.end()]:
            rest = self._head[found.end() :] + newline + after
            self._head = self._head[: found.end()]
            self._check_length()
            self._content = self._has_file = True
            return rest
        self._check_length()
        if newline:
            if self._head.strip():
                self._line()
            self._head, self._has_file = b"", False
        return after

    def _feed_content(self, data: bytes) -> bytes:
        text, quote, after = data.partition(b'"')
        self._decode(text, last=bool(quote))
        if quote:
            self._content = False
            self._head += quote
        return after

    def _decode(self, text: bytes, *, last: bool) -> None:
        text = self._rest + text
        whole = len(text) if last else len(text) // 4 * 4
        text, self._rest = text[:whole], text[whole:]
        try:
            # Python takes padding in more places, which would depend on how the body is cut.
            if len(text) % 4 or (text and self._padded) or b"=" in text[:-2] or text.endswith(b"==="):
                raise binascii.Error("padding where none is expected")
            decoded = binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error as error:
            raise _bad("The content of a file is not base64.") from error
        self._padded = not last and (self._padded or text.endswith(b"="))
        if decoded:
            self._inbox.write(decoded)

    def _check_length(self) -> None:
        if len(self._head) > MAX_LINE:
            raise RegistryError("too-large", f"A line of the commit has more than {MAX_LINE} bytes besides its file.")

    def _line(self) -> None:
        self._count += 1
        if self._count > MAX_LINES:
            raise RegistryError("too-large", f"The commit has more than {MAX_LINES} lines.")
        try:
            document = decoding.decode(self._head, Any)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise _bad(f"Line {self._count} is not JSON.") from error
        key = document.get("key") if isinstance(document, dict) else None
        value = document.get("value") if isinstance(document, dict) else None
        if not isinstance(key, str) or not isinstance(value, dict):
            raise _bad(f"Line {self._count} has no key with a value.")
        if key != "file":
            if self._has_file:
                raise _bad(f"Line {self._count} has content, but is not a file.")
            self._on_line(key, value)
            return
        path = value.get("path")
        if not isinstance(path, str) or value.get("encoding") != "base64" or value.get("content") != "":
            raise _bad(f"Line {self._count} is not a file with a path and its content in base64.")
        self._inbox.end(path)


def _bad(detail: str) -> RegistryError:
    return RegistryError("invalid-request", detail, hint="Send the commit as huggingface_hub does.")
