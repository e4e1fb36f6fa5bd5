"""Which base an adapter that a Hub client commits belongs to: the one that its config names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlmodel import Session

from lora_contract import canonical
from lora_contract.adapter.report import CONFIG, WEIGHTS
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import Repository, Version
from lora_registry.hub import revisions
from lora_registry.hub.heads import Head
from lora_registry.keeping import reading
from lora_registry.keeping import store as kept
from lora_registry.keeping.reading import Content
from lora_registry.repositories import resolve
from lora_registry.repositories import store as version_store
from lora_registry.repositories.paths import RepositoryPath

MAX_CONFIG: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChosenBase:
    """reference: of the base version. accept: although the config names another, as the version before does."""

    reference: str
    accept: bool = False


def choose(caller: Caller, path: RepositoryPath, head: Head, files: Mapping[str, tuple[str, int]]) -> ChosenBase:
    """Return the base of an adapter. Raises `rejected` if the config names none that is registered and readable."""
    name = _named(caller, files)
    before = head.version
    same_config = before is not None and files[CONFIG] == head.version_files.get(CONFIG)
    with caller.ctx.db.read() as session:
        pinned = None
        if before is not None and before.base_version_id is not None:
            pinned = version_store.versions_by_id(session, [before.base_version_id])[before.base_version_id]
        found = _find(session, caller.principal, path, name)
        if pinned is not None and same_config:
            same_weights = files[WEIGHTS] == head.version_files.get(WEIGHTS)
            if found is None or (same_weights and found[0].id == pinned.repository_id):
                repo = version_store.repositories_by_id(session, [pinned.repository_id])[pinned.repository_id]
                return ChosenBase(_reference(repo, pinned), accept=found is None)
        if found is None:
            raise _unknown(name)
        return ChosenBase(_reference(*found))


def _named(caller: Caller, files: Mapping[str, tuple[str, int]]) -> str:
    """Return `base_model_name_or_path` of the adapter's config; empty if it names none."""
    digest, size = files[CONFIG]
    if size > MAX_CONFIG:
        raise RegistryError("rejected", f"{CONFIG} has {size} bytes; expected at most {MAX_CONFIG}.")
    with caller.ctx.db.read() as session:
        row = kept.blob(session, digest)
    if row is None:
        raise RegistryError("rejected", f"{CONFIG} ({Digest.parse(digest).short}) was not uploaded.")
    data = b"".join(reading.read(caller.ctx, Content.of(row, CONFIG), 0, size))
    document = canonical.loads_strict(data, what=CONFIG, max_bytes=MAX_CONFIG)
    name = document.get("base_model_name_or_path") if isinstance(document, dict) else None
    return name if isinstance(name, str) else ""


def _find(session: Session, principal: Principal, path: RepositoryPath, name: str) -> tuple[Repository, Version] | None:
    """Resolve a name as Hub clients do when they load the base, and a bare one in the adapter's own namespace first."""
    for text in ([f"{path.namespace}/{name}"] if "/" not in name else []) + [name]:
        if not text.strip("/"):
            continue
        try:
            found, pin = revisions.find_repository(session, principal, text)
        except RegistryError as error:
            if error.code not in revisions.MISSING:
                raise
            continue
        if found.repo.kind == "base":
            return found.repo, resolve.in_repository(session, found, pin or "latest")
    return None


def _reference(repo: Repository, version: Version) -> str:
    return f"{repo.namespace}/{repo.name}@{version.digest}"


def _unknown(name: str) -> RegistryError:
    if not name:
        return RegistryError(
            "rejected",
            f"{CONFIG} names no base (base_model_name_or_path).",
            hint="Push with `lora-reg push DIR --base NAME`.",
        )
    return RegistryError(
        "rejected",
        f"{CONFIG} names the base {name[:200]!r}, which is not registered here.",
        hint=f"Register it: `lora-reg base add NAME DIR --alias {name[:200]}`, then push again.",
    )
