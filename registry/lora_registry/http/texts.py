"""Refuse text that decodes to something else than it shows: NUL characters, which PostgreSQL cannot store, keys that
occur twice, and nesting that exhausts the stack. Refuse text that decodes to far more than its size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from lora_contract import json_text
from lora_contract.errors import RegistryError

MAX_VALUES: Final = 150_000
"""A mebibyte of what clients send has at most 100,000: a base without its weights, tensor by tensor."""

_NUL: Final = b"\\u0000"
_BACKSLASH: Final = ord("\\")


def refuse_nul_in_url(scope: Mapping[str, Any]) -> None:
    """Raise `invalid-request` if the path or the query contains a NUL character. scope: of ASGI."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise RegistryError("invalid-request", "The URL contains a NUL character.")


def check_json(body: bytes) -> None:
    """Raise `invalid-request` if a JSON body contains an escaped NUL character, a key twice, too many levels or values.

    What is not JSON is left to the decoder, which names the place.
    """
    if _has_nul(body):
        raise RegistryError("invalid-request", "A string of the body contains a NUL character.")
    if json_text.outline(body, max_values=MAX_VALUES) is None:
        raise RegistryError("invalid-request", f"The body has more than {MAX_VALUES} values.")
    try:
        json.loads(body, object_pairs_hook=_unique)
    except RecursionError as error:
        raise RegistryError("invalid-request", "The body is nested too deeply.") from error
    except ValueError:
        return


def _has_nul(body: bytes) -> bool:
    """Whether an escape `\\u0000` is not itself escaped: an even number of backslashes precedes it."""
    found = body.find(_NUL)
    while found >= 0:
        start = found
        while start > 0 and body[start - 1] == _BACKSLASH:
            start -= 1
        if (found - start) % 2 == 0:
            return True
        found = body.find(_NUL, found + len(_NUL))
    return False


def _unique(items: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in items}) < len(items):
        twice = next(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        raise RegistryError("invalid-request", f"The body contains the key {twice[:80]!r} twice.")
