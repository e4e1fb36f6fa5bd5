"""Time and ids."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime


def now() -> int:
    """Return the current time in microseconds since the epoch."""
    return time.time_ns() // 1000


def iso(at: int) -> str:
    """Format a time in microseconds as RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(at / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id() -> str:
    """Return 32 cryptographically random hex digits."""
    return secrets.token_hex(16)
