"""Aliases: what trainers write for a base. The string in an adapter's config decides nothing; this table does."""

from __future__ import annotations

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.wire.catalog import RepositoryView
from lora_registry.auth.principals import Principal, require
from lora_registry.bases import store
from lora_registry.context import Context
from lora_registry.db.tables import Repository
from lora_registry.events import audit
from lora_registry.repositories import resolve, views

MAX_ALIAS = 512


def add_alias(session: Session, repo: Repository, text: str) -> None:
    """Record an alias in the caller's transaction. Raises `exists` where another base of the namespace has it."""
    if not text or len(text) > MAX_ALIAS or text != text.strip() or "\0" in text:
        raise RegistryError(
            "invalid-request", f"{text[:80]!r} cannot be an alias: 1 to {MAX_ALIAS} characters, no white space around."
        )
    row = store.add_alias(session, repo.namespace, text, repo.id)
    if row.repository_id != repo.id:
        raise RegistryError("exists", f"{text!r} is an alias of another base in {repo.namespace!r}.")


def add_aliases(ctx: Context, principal: Principal, namespace: str, name: str, aliases: list[str]) -> RepositoryView:
    """Add aliases to a base. Raises `conflict` where the repository is no base."""
    require(principal, "writer", namespace)
    with ctx.db.write() as session:
        repo = resolve.repository(session, principal, namespace, name, lock=True)
        if repo.kind != "base":
            raise RegistryError("conflict", f"{namespace}/{name} is of kind {repo.kind}; only a base has aliases.")
        for alias in aliases:
            add_alias(session, repo, alias)
        audit.record(
            session,
            "aliases-added",
            principal=principal,
            namespace=namespace,
            subject=f"{namespace}/{name}",
            aliases=aliases,
        )
        session.flush()
        return views.repository(session, repo)


def fingerprint(ctx: Context, principal: Principal, namespace: str, name: str, selector: str) -> bytes:
    """The canonical fingerprint bytes of a base version."""
    with ctx.db.read() as session:
        repo, version = resolve.version(session, principal, namespace, name, selector)
        row = store.fingerprint(session, version.id)
        if row is None:
            raise RegistryError(
                "not-found", f"{repo.namespace}/{repo.name} is of kind {repo.kind} and has no fingerprint."
            )
        return row.body
