"""The caller of a service function: its first argument."""

from __future__ import annotations

from dataclasses import dataclass

from lora_contract.errors import RegistryError
from lora_registry.auth.principals import Principal, Role
from lora_registry.context import Context


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal and the service's context. Created once per request, or by a job."""

    ctx: Context
    principal: Principal

    def require(self, role: Role, namespace: str) -> None:
        """Raise `not-found` if the caller may not read the namespace, `forbidden` if it lacks the role."""
        if not self.principal.may("reader", namespace):
            raise RegistryError("not-found", f"There is no namespace {namespace!r} that you may read.")
        if not self.principal.may(role, namespace):
            raise RegistryError(
                "forbidden", f"This requires the role {role} in {namespace!r}; the token has {self.principal.role}."
            )
