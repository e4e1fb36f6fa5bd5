"""Weights of bases that were registered without them: where they lie, and whether jobs may have them fetched."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import HubLocation
from lora_registry.auth.principals import Principal
from lora_registry.bases import store
from lora_registry.db.tables import Version, WeightSource
from lora_registry.repositories import store as repository_store
from lora_registry.runtime.clock import now
from lora_registry.settings import DEFAULT_HUB, ServiceSettings, canonical_endpoint

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?\Z", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}\Z")
_MAX_ENDPOINT: Final = 255


def check(location: HubLocation) -> HubLocation:
    """Return the location with its endpoint in one spelling. Raises `invalid-request`."""
    parts = urlsplit(location.endpoint)
    plain = not {"@", "?", "#"} & set(location.endpoint) and location.endpoint.isprintable()
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not plain
        or len(location.endpoint) > _MAX_ENDPOINT
    ):
        raise RegistryError("invalid-request", "The endpoint of the weights is not the URL of a Hub.")
    if not _REPOSITORY.match(location.repository) or ".." in location.repository:
        raise RegistryError("invalid-request", "The repository of the weights is not a name such as org/name.")
    if not _COMMIT.match(location.commit):
        raise RegistryError("invalid-request", "The commit of the weights is not 40 to 64 hex digits in lower case.")
    return HubLocation(
        endpoint=canonical_endpoint(location.endpoint), repository=location.repository, commit=location.commit
    )


def record(session: Session, principal: Principal, version: Version, location: HubLocation) -> None:
    """Record where the weights of a base lie, unless they are stored. The latest location counts."""
    if version.weights_absent:
        found = check(location)
        store.set_weight_source(
            session,
            WeightSource(
                version_id=version.id,
                endpoint=found.endpoint,
                repository=found.repository,
                commit_id=found.commit,
                author=principal.name,
                created_at=now(),
            ),
        )


def require(session: Session, settings: ServiceSettings, version: Version, *, hint: str) -> None:
    """Raise `unsupported` if the weights of a version are neither stored nor to be fetched when a job needs them.

    hint: what else to do if nobody said where they lie.
    """
    if not version.weights_absent:
        return
    repo = repository_store.repositories_by_id(session, [version.repository_id])[version.repository_id]
    name = f"{repo.label}:v{version.number}"
    source = store.weight_source(session, version.id)
    if source is None:
        raise RegistryError(
            "unsupported", f"{name} was registered without its weights, so no job can read them.", hint=hint
        )
    if source.endpoint not in settings.hubs:
        raise not_allowed(source, name)


def not_allowed(source: WeightSource, name: str) -> RegistryError:
    """The error if workers may not fetch weights from where they lie."""
    return RegistryError(
        "unsupported",
        f"The weights of {name} are not stored, and this service does not fetch from {source.endpoint}.",
        hint=f"Push them with `{push_command(source, name)}`, or have LORA_REG_HUB_ENDPOINTS name {source.endpoint}.",
    )


def push_command(source: WeightSource, name: str) -> str:
    """The command that fetches the weights on another machine and pushes them."""
    repository = name.partition(":")[0]
    endpoint = "" if source.endpoint == DEFAULT_HUB else f" --endpoint {source.endpoint}"
    return f"lora-reg base add {repository} hf://{source.repository}@{source.commit_id} --weights{endpoint}"
