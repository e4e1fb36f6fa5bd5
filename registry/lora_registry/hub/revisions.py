"""From an id and a revision, as a Hub client names them, to a version. Says which of the two is missing.

What `main` is, which ids are aliases, and what a yanked version answers is reasoned in
docs/decisions/0004-hub-dialect.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.wire.catalog import VersionFile
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.bases import store as base_store
from lora_registry.db.tables import Repository, Version
from lora_registry.hub import errors, names
from lora_registry.hub.paths import Call
from lora_registry.repositories import resolve, store, views
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.repositories.versions import Located
from lora_registry.runtime.clock import iso
from lora_registry.tags import store as tag_store

MISSING = ("not-found", "deleted", "invalid-reference")
MAX_NUMBERS = 1000
"""How many versions `refs` names, newest first."""


@dataclass(frozen=True, slots=True)
class Contents:
    """A version as Hub clients see it. Times are RFC 3339.

    files: those that can be downloaded; a base may have been registered without its weights. base: `namespace/name`.
    yanked: the reason, None where it is not yanked.
    """

    namespace: str
    kind: str
    number: int
    commit: str
    repository_created_at: str
    created_at: str
    size: int
    files: list[VersionFile]
    base: str | None
    yanked: str | None


def show(caller: Caller, call: Call) -> Contents:
    """What a call means. Raises `not-found` as the Hub's RepoNotFound or RevisionNotFound; so do all of these."""
    with caller.ctx.db.read() as session:
        repo, version = _find(session, caller.principal, call)
        rows = store.files_of(session, [version.id]).get(version.id, [])
        base = None
        if version.base_version_id is not None:
            pinned = store.versions_by_id(session, [version.base_version_id])
            (ref,) = views.refs(session, list(pinned.values())).values()
            base = f"{ref.namespace}/{ref.name}"
        return Contents(
            namespace=repo.namespace,
            kind=repo.kind,
            number=version.number,
            commit=version.commit_id,
            repository_created_at=iso(repo.created_at),
            created_at=iso(version.created_at),
            size=version.size,
            files=[VersionFile(path=row.path, size=row.size, digest=row.digest) for row in rows if row.stored],
            base=base,
            yanked=version.yanked_reason,
        )


def locate(caller: Caller, call: Call) -> tuple[Located, str | None]:
    """Where a file is, and the reason where its version is yanked. Raises EntryNotFound too."""
    with caller.ctx.db.read() as session:
        repo, version = _find(session, caller.principal, call)
        row = store.file(session, version.id, call.path)
    if row is None or not row.stored:
        why = "has no file" if row is None else "was registered without"
        detail = f"{repo.namespace}/{repo.name}:v{version.number} {why} {call.path[:200]!r}."
        raise errors.entry_not_found(detail, commit=version.commit_id)
    found = Located(row.path, Digest.parse(row.digest), row.size, version.digest, version.commit_id)
    return found, version.yanked_reason


def refs(caller: Caller, call: Call) -> tuple[str | None, list[tuple[str, str]]]:
    """The commit of `main` (None where nothing may be served as such), and name and commit of every tag and version.

    Tags on a yanked version are left out, as they cannot be resolved.
    """
    with caller.ctx.db.read() as session:
        repo, _ = _repository(session, caller.principal, call.repo)
        try:
            main: str | None = _find(session, caller.principal, call)[1].commit_id
        except RegistryError as error:
            if error.facts.get("hub") != "RevisionNotFound":
                raise
            main = None
        tagged = tag_store.tags(session, [repo.id])
        targets = store.versions_by_id(session, (tag.version_id for tag in tagged))
        named = [(tag.name, targets[tag.version_id]) for tag in tagged]
        numbers = store.commits(session, repo.id, limit=MAX_NUMBERS)
    return main, [
        *((name, version.commit_id) for name, version in named if version.yanked_reason is None),
        *((f"v{number}", commit) for number, commit in numbers),
    ]


def place(caller: Caller, call: Call) -> tuple[RepositoryPath, int]:
    """The repository and the number of the version that a call means."""
    with caller.ctx.db.read() as session:
        repo, version = _find(session, caller.principal, call)
        return RepositoryPath(repo.namespace, repo.name), version.number


def namespace(caller: Caller, call: Call) -> str:
    """The namespace of the repository that a call means, which need not have a version."""
    with caller.ctx.db.read() as session:
        return _repository(session, caller.principal, call.repo)[0].namespace


def _find(session: Session, principal: Principal, call: Call) -> tuple[Repository, Version]:
    repo, pin = _repository(session, principal, call.repo)
    where, wanted = f"{repo.namespace}/{repo.name}", names.selector(call.revision)
    if wanted is None:
        raise errors.revision_not_found(f"{call.revision[:200]!r} is no revision of {where}.")
    if wanted == names.LATEST and pin is not None:
        wanted = pin
    elif wanted == names.LATEST and call.channel is not None:
        # A base is no stage of a rollout: it is needed under every channel, and few people tag one.
        tagged = repo.kind != "base" or tag_store.tag(session, repo.id, call.channel) is not None
        wanted = call.channel if tagged else names.LATEST
    try:
        version = resolve.in_repository(session, repo, wanted)
    except RegistryError as error:
        if error.code not in MISSING:
            raise
        raise errors.revision_not_found(error.detail) from error
    if version.yanked_reason is not None and not names.is_exact(wanted):
        raise errors.revision_not_found(f"{where}:v{version.number} was yanked: {version.yanked_reason}")
    return repo, version


def _repository(session: Session, principal: Principal, repo_id: str) -> tuple[Repository, str | None]:
    """The repository that an id means, and what stands for its `main`.

    A name of ours comes first, then the alias of a base (what adapters' configs hold, so clients ask for it here),
    then a name with a tag or a version behind it.
    """
    targets = names.targets(repo_id)
    for target in targets:
        if target.pin is None and (repo := _readable(session, principal, target)) is not None:
            return repo, None
    if base := base_store.by_alias(session, repo_id, namespace=principal.visible()):
        return base, None
    for target in targets:
        if target.pin is not None and (repo := _readable(session, principal, target)) is not None:
            return repo, target.pin
    raise errors.repo_not_found(repo_id)


def _readable(session: Session, principal: Principal, target: names.Target) -> Repository | None:
    """A live repository of models. Data sets are none."""
    try:
        repo = resolve.repository(session, principal, RepositoryPath(target.namespace, target.name))
    except RegistryError as error:
        if error.code not in MISSING:
            raise
        return None
    return repo if repo.kind != "dataset" else None
