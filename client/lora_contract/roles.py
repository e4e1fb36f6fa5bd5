"""Roles, grants and visibilities: who may do what in a namespace. docs/access.md has the table of roles."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec

from lora_contract import glob, reference
from lora_contract.errors import RegistryError

Role = Literal["reader", "writer", "maintainer", "admin"]
Visibility = Literal["private", "internal", "public"]

ROLES: Final[tuple[Role, ...]] = get_args(Role)
"""Each role includes those before it."""

VISIBILITIES: Final[tuple[Visibility, ...]] = get_args(Visibility)

ALL: Final = "*"
_PATTERN: Final = re.compile(r"[a-z0-9._*-]+\Z")


Pattern: TypeAlias = Annotated[str, msgspec.Meta(max_length=4096)]


class Grant(msgspec.Struct, frozen=True, order=True):
    """A role in the namespaces that a pattern matches: a namespace, or a glob such as `acme-*` or `*`."""

    pattern: Pattern
    role: Role

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "pattern", self.pattern.lower())

    def __str__(self) -> str:
        return f"{self.role}:{self.pattern}"

    def gives(self, role: Role, namespace: str) -> bool:
        """Whether the grant gives a role in a namespace, or in all namespaces of a pattern."""
        return ROLES.index(self.role) >= ROLES.index(role) and glob.matches(self.pattern, namespace)


def parse_grant(text: str) -> Grant:
    """Parse `ROLE:PATTERN`. Raises RegistryError `usage`, `invalid-reference`."""
    role, colon, pattern = text.partition(":")
    if not colon:
        raise RegistryError("usage", f"{text[:200]!r} is not a grant; expected ROLE:PATTERN, such as writer:acme.")
    return Grant(check_pattern(pattern), check_role(role))


def check_role(text: str) -> Role:
    """Raises RegistryError `usage` if it is not a role."""
    for role in ROLES:
        if role == text:
            return role
    raise RegistryError("usage", f"{text[:40]!r} is not a role; expected one of {', '.join(ROLES)}.")


def check_visibility(text: str) -> Visibility:
    """Raises RegistryError `usage` if it is not a visibility."""
    for visibility in VISIBILITIES:
        if visibility == text:
            return visibility
    raise RegistryError("usage", f"{text[:40]!r} is not a visibility; expected one of {', '.join(VISIBILITIES)}.")


def check_pattern(pattern: str) -> str:
    """Check a namespace or a pattern of namespaces. Raises RegistryError `usage`, `invalid-reference`."""
    if ALL not in pattern:
        return reference.check_namespace(pattern)
    pattern = pattern.lower()
    if len(pattern) > reference.MAX_NAMESPACE or not _PATTERN.match(pattern):
        raise RegistryError(
            "usage",
            f"{pattern[:120]!r} is not a pattern of namespaces; expected letters, digits, '.', '_', '-' and "
            f"'*', at most {reference.MAX_NAMESPACE} characters.",
        )
    return pattern
