"""Keyset cursors: the last key of the previous page, opaque to clients."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from lora_contract.errors import RegistryError

MAX_LIMIT = 1000


def encode(*key: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode(cursor: str | None, *types: type) -> tuple[Any, ...] | None:
    """Return the key of a cursor; None without a cursor. Raises RegistryError `invalid-request`."""
    if cursor is None:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, UnicodeError) as error:
        raise _invalid(cursor) from error
    if (
        not isinstance(key, list)
        or len(key) != len(types)
        or any(type(k) is not t for k, t in zip(key, types, strict=True))
    ):
        raise _invalid(cursor)
    if any(isinstance(part, int) and abs(part) >= 2**63 for part in key) or any(
        "\0" in part for part in key if isinstance(part, str)
    ):
        raise _invalid(cursor)
    return tuple(key)


def _invalid(cursor: str) -> RegistryError:
    return RegistryError("invalid-request", f"{cursor[:40]!r} is not a cursor of this list; start again without one.")
