"""Principals and their grants. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lora_contract.roles import ALL, ROLES, Grant, Role
from lora_contract.wire.common import Identity
from lora_registry.db.scope import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller.

    Args:
        name: of the token; events name it.
        anonymous: it sent no token.
        signed_in: it may read internal namespaces.
    """

    name: str
    grants: tuple[Grant, ...] = ()
    anonymous: bool = False
    signed_in: bool = True

    def may(self, role: Role, namespace: str) -> bool:
        """Whether a grant gives this role in a namespace, or in all namespaces of a pattern.

        Reading needs no grant if the namespace is internal or public: see `auth.reading`.
        """
        return any(grant.gives(role, namespace) for grant in self.grants)

    def role_in(self, namespace: str) -> Role:
        """Return the highest granted role; `reader` if only the visibility of the namespace gives access."""
        return max((role for role in ROLES if self.may(role, namespace)), key=ROLES.index, default=ROLES[0])

    def highest_role(self) -> Role:
        return max((grant.role for grant in self.grants), key=ROLES.index, default=ROLES[0])

    def only_namespace(self) -> str | None:
        """Return the namespace of the only grant; None if there are several, or one for a pattern."""
        patterns = [grant.pattern for grant in self.grants]
        return patterns[0] if len(patterns) == 1 and ALL not in patterns[0] else None

    def identity(self) -> Identity:
        return Identity(
            name=self.name,
            role=self.highest_role(),
            namespace=self.only_namespace(),
            anonymous=self.anonymous,
            grants=list(self.grants),
        )

    def visible(self) -> Scope:
        """Return what the caller may read."""
        return Scope(self.granted("reader").patterns, ("internal", "public") if self.signed_in else ("public",))

    def granted(self, role: Role) -> Scope:
        """Return the namespaces in which a grant gives this role."""
        return Scope(tuple(grant.pattern for grant in self.grants if ROLES.index(grant.role) >= ROLES.index(role)))


def origin(name: str) -> str:
    """Return what identifies a caller: of one that was let in by an identity token, the part of its name after `#`."""
    return name.rpartition("#")[2]


def everywhere(name: str, *, anonymous: bool = False) -> Principal:
    """Return an administrator of all namespaces."""
    return Principal(name, (Grant(ALL, "admin"),), anonymous)


LOCAL: Final = everywhere("local", anonymous=True)
"""Every caller of a service without authentication (loopback only)."""

ANONYMOUS: Final = Principal("anonymous", anonymous=True, signed_in=False)
"""A caller without a token where tokens are required: it reads public namespaces."""

WORKER: Final = everywhere("worker")
OPERATOR: Final = everywhere("operator")
"""Whoever runs `lora-registry` on a machine of the service."""
