"""The caller of a service function: its first argument."""

from __future__ import annotations

from dataclasses import dataclass

from lora_contract.errors import RegistryError
from lora_contract.roles import ALL, Role
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import absent, may_read
from lora_registry.context import Context


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal and the service's context. Created once per request, or by a job."""

    ctx: Context
    principal: Principal

    def require(self, role: Role, namespace: str) -> None:
        """Require a granted role in a namespace, or in all of a pattern.

        Raises `not-found` if the caller may not read the namespace, `forbidden` if it may but lacks the role, and
        `unauthenticated` without a token.
        """
        if self.principal.may(role, namespace):
            return
        self.require_readable(namespace)
        self.require_signed_in()
        has = self.principal.role_in(namespace) if self.principal.may("reader", namespace) else "no role there"
        raise RegistryError("forbidden", f"This requires the role {role} in {namespace!r}; the token has {has}.")

    def require_readable(self, namespace: str) -> None:
        """Raise `not-found` if the caller may not read the namespace."""
        with self.ctx.db.read() as session:
            if not may_read(session, self.principal, namespace):
                raise absent(self.principal, f"There is no namespace {namespace!r} that you may read.")

    def require_root(self) -> None:
        """Raise `unauthenticated` or `forbidden` unless the caller administers all namespaces."""
        self.require_signed_in()
        if not self.principal.may("admin", ALL):
            raise RegistryError("forbidden", "This is for callers with the role admin in '*'.")

    def require_signed_in(self) -> None:
        """Raise `unauthenticated` for a caller without a token."""
        if not self.principal.signed_in:
            raise RegistryError("unauthenticated", "The request has no token.")
