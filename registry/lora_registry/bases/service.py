"""Aliases and fingerprints of bases.

An alias is a string that trainers write for a base. An adapter's config does not choose its base; aliases do.
"""

from __future__ import annotations

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import RepositoryView
from lora_registry.auth.caller import Caller
from lora_registry.bases import store
from lora_registry.db.tables import Repository
from lora_registry.events import audit
from lora_registry.repositories import resolve, views
from lora_registry.repositories.paths import RepositoryPath, VersionPath

MAX_ALIAS = 512


def add_alias(session: Session, repo: Repository, text: str) -> None:
    """Record an alias in the caller's transaction. Raises `exists` if another base of the namespace has it."""
    if not text or len(text) > MAX_ALIAS or text != text.strip() or "\0" in text:
        raise RegistryError(
            "invalid-request",
            f"{text[:80]!r} cannot be an alias: 1 to {MAX_ALIAS} characters, no surrounding whitespace.",
        )
    row = store.add_alias(session, repo.namespace, text, repo.id)
    if row.repository_id != repo.id:
        raise RegistryError("exists", f"{text!r} is an alias of another base in {repo.namespace!r}.")


def add_aliases(caller: Caller, path: RepositoryPath, aliases: list[str]) -> RepositoryView:
    """Add aliases to a base. Raises `conflict` for a repository of another kind."""
    caller.require("writer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path, lock=True)
        if repo.kind != "base":
            raise RegistryError("conflict", f"{path} is of kind {repo.kind}; only a base has aliases.")
        for alias in aliases:
            add_alias(session, repo, alias)
        audit.record(
            session,
            "aliases-added",
            principal=caller.principal,
            namespace=path.namespace,
            subject=str(path),
            aliases=aliases,
        )
        session.flush()
        return views.repository(session, repo)


def fingerprint(caller: Caller, path: VersionPath) -> bytes:
    """Return the canonical fingerprint bytes of a base version."""
    with caller.ctx.db.read() as session:
        repo, version = resolve.version(session, caller.principal, path)
        row = store.fingerprint(session, version.id)
        if row is None:
            raise RegistryError("not-found", f"{repo.label} is of kind {repo.kind} and has no fingerprint.")
        return row.body
