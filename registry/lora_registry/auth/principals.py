"""Principals and their permissions. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["reader", "writer", "admin"]
RANK: Final[dict[str, int]] = {"reader": 1, "writer": 2, "admin": 3}


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. namespace None: the role applies to every namespace."""

    name: str
    role: Role
    namespace: str | None = None
    anonymous: bool = False

    def may(self, role: Role, namespace: str) -> bool:
        return RANK[self.role] >= RANK[role] and self.namespace in (None, namespace)

    def visible(self) -> str | None:
        """Return the only namespace that the caller may read; None: all."""
        return self.namespace


LOCAL: Final = Principal("local", "admin", anonymous=True)
"""Every caller of a service without authentication (loopback only)."""

WORKER: Final = Principal("worker", "admin")
