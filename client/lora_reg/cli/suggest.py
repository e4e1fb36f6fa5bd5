"""`Did you mean …?` after a repository or a tag was not found. The registry is asked for names only then."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from lora_contract.errors import RegistryError

if TYPE_CHECKING:
    from lora_contract.reference import Reference
    from lora_reg.cli.state import State
    from lora_reg.client import Client

_NAMES: Final = 2000
"""Repositories that are looked through."""
_SHOWN: Final = 3


def with_suggestion(error: RegistryError, state: State) -> RegistryError:
    """The error with names that are close to the first reference that the registry does not know."""
    # The target of a push or a merge need not exist: only references that the error names are looked at.
    named = [reference for reference in state.references if reference.repository in error.detail]
    if error.code != "not-found" or not named or "command" in error.facts:
        return error
    from lora_reg.client import Client

    try:
        with Client(settings=state.settings()) as client:
            found = next(filter(None, (_close(client, reference) for reference in named)), None)
    except RegistryError:
        return error
    if found is None:
        return error
    return RegistryError(error.code, error.detail, hint=f"Did you mean {' or '.join(found)}?", **error.facts)


def _close(client: Client, reference: Reference) -> list[str] | None:
    """Names close to a reference; None if it exists or nothing is close."""
    try:
        repository = client.repository(reference.repository)
    except RegistryError as error:
        if error.code != "not-found":
            raise
        return _repositories(client, reference) or None
    if reference.tag is not None and reference.tag not in repository.tags:
        names = get_close_matches(reference.tag, repository.tags, n=_SHOWN)
        return [f"{reference.repository}:{name}" for name in names or sorted(repository.tags)[:_SHOWN]] or None
    if reference.version is not None and repository.latest and reference.version > repository.latest.number:
        return [f"{reference.repository}:v{repository.latest.number}"]
    return None


def _repositories(client: Client, reference: Reference) -> list[str]:
    """The same name in another namespace first, then names that are spelled alike."""
    known = [(view.namespace, view.name) for view in client.repositories(limit=_NAMES)]
    same = [f"{namespace}/{name}" for namespace, name in known if name.lower() == reference.name.lower()]
    namespaces = get_close_matches(reference.namespace or "", _unique(namespace for namespace, _ in known), n=_SHOWN)
    here = [name for namespace, name in known if namespace in namespaces]
    close = get_close_matches(reference.name, _unique(here), n=_SHOWN, cutoff=0.7)
    alike = [f"{namespace}/{name}" for namespace, name in known if namespace in namespaces and name in close]
    return list(dict.fromkeys((*same, *alike)))[:_SHOWN]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
