"""Who may read a namespace: by a grant, or because it is internal or public."""

from __future__ import annotations

from collections.abc import Set

from sqlmodel import Session, col, select

from lora_contract.errors import RegistryError
from lora_contract.roles import VISIBILITIES, check_visibility
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import Namespace


def may_read(session: Session, principal: Principal, namespace: str) -> bool:
    """Whether the caller may read everything in a namespace. Asks the database only if no grant gives it."""
    scope = principal.visible()
    if scope.has(namespace):
        return True
    found = select(Namespace.name).where(Namespace.name == namespace, scope.where(col(Namespace.name)))
    return session.exec(found).first() is not None


def open_namespaces(session: Session, principal: Principal) -> list[str]:
    """List the namespaces that their visibility opens to the caller."""
    query = select(Namespace.name).where(col(Namespace.visibility).in_(principal.visible().visibilities))
    return list(session.exec(query))


def public_among(session: Session, namespaces: Set[str]) -> set[str]:
    """Return those of these namespaces that everybody may read."""
    query = select(Namespace.name).where(col(Namespace.name).in_(namespaces), Namespace.visibility == "public")
    return set(session.exec(query))


def narrower(session: Session, namespaces: Set[str], than: str) -> frozenset[str]:
    """Return those of these namespaces that not everybody may read who may read the namespace `than`."""
    others = namespaces - {than}
    if not others:
        return frozenset()
    query = select(Namespace.name, Namespace.visibility).where(col(Namespace.name).in_({*others, than}))
    found = dict(session.exec(query).all())

    def rank(name: str) -> int:
        return VISIBILITIES.index(check_visibility(found.get(name, VISIBILITIES[0])))

    return frozenset(name for name in others if rank(name) == 0 or rank(name) < rank(than))


def absent(principal: Principal, detail: str, *, hint: str | None = None) -> RegistryError:
    """Return the error for what is missing or hidden, which must be the same.

    A caller without a token is asked for one.
    """
    if not principal.signed_in:
        return RegistryError("unauthenticated", "The request has no token, and nothing public has this name.")
    return RegistryError("not-found", detail, hint=hint)
