"""Time and ids."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def iso(moment: int) -> str:
    """RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(moment / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id() -> str:
    """32 random hex digits that cannot be guessed."""
    return secrets.token_hex(16)
