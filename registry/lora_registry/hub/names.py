"""Translate repository ids and revisions of Hub clients to our references. Pure.

Most inference servers can name a repository but not a revision. For them the id itself may contain a tag or a version:
`team/adapter.prod` and `team/adapter.v12` are `team/adapter` with another `main`, unless a repository has exactly that
name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lora_contract import reference
from lora_contract.errors import RegistryError

LATEST: Final = "latest"
"""The native selector of the newest version, to which `main` maps. No tag can have this name."""
_MAIN: Final = ("main", "refs/heads/main", "HEAD", LATEST)
"""`HEAD` is what JavaScript clients ask for."""
_EXACT: Final = re.compile(r"(?:v[1-9][0-9]{0,17}|[0-9a-f]{40})\Z")


@dataclass(frozen=True, slots=True)
class RepositoryCandidate:
    """A repository that an id may refer to. pin: the selector of `main`; None for the newest version."""

    namespace: str
    name: str
    pin: str | None = None


def targets(repo_id: str) -> list[RepositoryCandidate]:
    """Return the repositories that an id may refer to, longest name first; empty if the id is invalid here."""
    namespace, _, name = repo_id.rpartition("/")
    namespace = namespace or reference.DEFAULT_NAMESPACE
    if not _passes(reference.check_namespace, namespace):
        return []
    found = [RepositoryCandidate(namespace, name)] if _passes(reference.check_name, name) else []
    cut = name.rfind(".")
    while cut > 0:
        head, tail = name[:cut], name[cut + 1 :]
        if _passes(reference.check_name, head) and selector(tail) is not None:
            found.append(RepositoryCandidate(namespace, head, tail))
        cut = name.rfind(".", 0, cut)
    return found


def selector(revision: str) -> str | None:
    """Return the native selector of a revision: LATEST, a tag, `vN` or a commit of 40 hex digits; else None."""
    if revision in _MAIN:
        return LATEST
    if revision.startswith("refs/tags/"):
        revision = revision.removeprefix("refs/tags/")
    return revision if is_exact(revision) or is_tag(revision) else None


def is_tag(text: str) -> bool:
    return _passes(reference.check_tag, text)


def is_exact(selector: str) -> bool:
    """Return whether a selector always means the same version (`vN`, a commit), unlike a tag."""
    return _EXACT.match(selector) is not None


def _passes(check: Callable[[str], str], text: str) -> bool:
    try:
        check(text)
    except RegistryError:
        return False
    return True
