"""Resolve a Hub client's id and revision to a version. The error states which of the two is missing.

docs/decisions/0004-hub-dialect.md gives the reasons for the meaning of `main`, for ids that are aliases, and for the
response for a yanked version.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import RepositoryView, VersionFile
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.auth.reading import public_among
from lora_registry.bases import store as base_store
from lora_registry.db.tables import Repository, Version
from lora_registry.hub import errors, names
from lora_registry.hub import store as hub_store
from lora_registry.hub.paths import Call
from lora_registry.keeping import store as kept
from lora_registry.keeping.reading import Content
from lora_registry.repositories import resolve, store, views
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.repositories.resolve import Readable
from lora_registry.repositories.versions import FileLocation
from lora_registry.runtime.clock import iso
from lora_registry.tags import store as tag_store

MISSING = ("not-found", "unauthenticated", "deleted", "invalid-reference")
MAX_SAME_ALIAS = 10
MAX_NUMBERS = 1000
"""Maximum number of versions in `refs`, newest first."""


@dataclass(frozen=True, slots=True)
class RevisionInfo:
    """A version as Hub clients see it. Times are RFC 3339.

    files: those that can be downloaded: a base may be registered without its weights. bases: what the pinned base is
    called: `namespace/name`, then its aliases. private: not everybody may read it. yanked: the reason; None if not
    yanked.
    """

    namespace: str
    kind: str
    number: int
    commit: str
    repository_created_at: str
    created_at: str
    size: int
    files: list[VersionFile]
    bases: list[str]
    private: bool
    yanked: str | None


def show(caller: Caller, call: Call) -> RevisionInfo:
    """Return the version of a call. Raises `not-found` as RepoNotFound or RevisionNotFound, like those below."""
    with caller.ctx.db.read() as session:
        repo, version = _find(session, caller.principal, call)
        rows = store.files_of(session, [version.id]).get(version.id, [])
        return RevisionInfo(
            namespace=repo.namespace,
            kind=repo.kind,
            number=version.number,
            commit=version.commit_id,
            repository_created_at=iso(repo.created_at),
            created_at=iso(version.created_at),
            size=version.size,
            files=[VersionFile(path=row.path, size=row.size, digest=row.digest) for row in rows if row.stored],
            bases=_base_names(session, caller, [version]).get(version.id, []),
            private=repo.namespace not in public(session, caller, {repo.namespace}),
            yanked=version.yanked_reason,
        )


def base_names(caller: Caller, repositories: Iterable[RepositoryView]) -> dict[tuple[str, str], list[str]]:
    """Return what the bases of the newest versions are called, by repository."""
    wanted = {(repo.namespace, repo.name): repo.latest.digest for repo in repositories if repo.latest is not None}
    with caller.ctx.db.read() as session:
        rows = store.versions_by_digests(session, wanted.values())
        repos = store.repositories_by_id(session, (row.repository_id for row in rows))
        names_of = _base_names(session, caller, rows)
    result = {}
    for row in rows:
        place = (repos[row.repository_id].namespace, repos[row.repository_id].shown)
        if wanted.get(place) == row.digest:
            result[place] = names_of.get(row.id, [])
    return result


def _base_names(session: Session, caller: Caller, versions: Iterable[Version]) -> dict[int, list[str]]:
    """Return the names of the bases that versions pin, by version; those that the caller may not read are left out."""
    pinned = {row.id: row.base_version_id for row in versions if row.base_version_id is not None}
    readable = views.readable_refs(session, caller.principal, pinned.values())
    found = hub_store.base_names(session, readable)
    return {key: found[base] for key, base in pinned.items() if base in found}


def public_namespaces(caller: Caller, repositories: Iterable[RepositoryView]) -> Set[str]:
    """Return those of the namespaces that everybody may read; without login all."""
    with caller.ctx.db.read() as session:
        return public(session, caller, {repo.namespace for repo in repositories})


def public(session: Session, caller: Caller, namespaces: Set[str]) -> Set[str]:
    return namespaces if caller.ctx.settings.auth == "none" else public_among(session, namespaces)


def locate(caller: Caller, call: Call) -> tuple[FileLocation, str | None]:
    """Locate a file; also return the reason if its version is yanked. Raises EntryNotFound too."""
    with caller.ctx.db.read() as session:
        repo, version = _find(session, caller.principal, call)
        row = store.file(session, version.id, call.path)
        blob = None if row is None else kept.blob(session, row.digest)
    if row is None or blob is None or not row.stored:
        reason = "has no file" if row is None else "was registered without"
        detail = f"{repo.label}:v{version.number} {reason} {call.path[:200]!r}."
        raise errors.entry_not_found(detail, commit=version.commit_id)
    found = FileLocation(row.path, Content.of(blob, row.path), version.digest, version.commit_id)
    return found, version.yanked_reason


def refs(caller: Caller, call: Call) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the commit of `main` (None if no version can be served as `main`), and all tags and versions with commits.

    Tags on a yanked version are omitted, since they cannot be resolved.
    """
    with caller.ctx.db.read() as session:
        found, _ = _repository(session, caller.principal, call)
        try:
            main: str | None = _find(session, caller.principal, call)[1].commit_id
        except RegistryError as error:
            if error.facts.get("hub") != "RevisionNotFound":
                raise
            main = None
        repo, only = found.repo, found.only
        tagged = [tag for tag in tag_store.tags(session, [repo.id]) if only is None or tag.version_id in only]
        targets = store.versions_by_id(session, (tag.version_id for tag in tagged))
        named = [(tag.name, targets[tag.version_id]) for tag in tagged]
        numbers = store.commits(session, repo.id, limit=MAX_NUMBERS, only=only)
    return main, [
        *((name, version.commit_id) for name, version in named if version.yanked_reason is None),
        *((f"v{number}", commit) for number, commit in numbers),
    ]


def locate_version(caller: Caller, call: Call) -> tuple[RepositoryPath, int]:
    """Return the repository and version number of a call."""
    with caller.ctx.db.read() as session:
        repo, version = _find(session, caller.principal, call)
        return RepositoryPath(repo.namespace, repo.name), version.number


def namespace(caller: Caller, call: Call) -> str:
    """Return the namespace of a call's repository, which may have no version."""
    with caller.ctx.db.read() as session:
        return _repository(session, caller.principal, call)[0].repo.namespace


def _find(session: Session, principal: Principal, call: Call) -> tuple[Repository, Version]:
    found, pin = _repository(session, principal, call)
    repo = found.repo
    repo_id, wanted = f"{repo.label}", names.selector(call.revision)
    if wanted is None:
        raise errors.revision_not_found(f"{call.revision[:200]!r} is not a revision of {repo_id}.")
    if wanted == names.LATEST and pin is not None:
        wanted = pin
    elif wanted == names.LATEST and call.channel is not None:
        # A base is not part of a rollout: every channel needs it, and bases are rarely tagged.
        tagged = repo.kind != "base" or tag_store.tag(session, repo.id, call.channel) is not None
        wanted = call.channel if tagged else names.LATEST
    try:
        version = resolve.in_repository(session, found, wanted)
    except RegistryError as error:
        if error.code not in MISSING:
            raise
        raise errors.revision_not_found(error.detail) from error
    if version.yanked_reason is not None and not names.is_exact(wanted):
        raise errors.revision_not_found(f"{repo_id}:v{version.number} was yanked: {version.yanked_reason}")
    return repo, version


def _repository(session: Session, principal: Principal, call: Call) -> tuple[Readable, str | None]:
    if call.kind == "other":
        raise errors.repo_not_found(call.repo, principal)
    return find_repository(session, principal, call.repo, datasets=call.kind == "dataset")


def find_repository(
    session: Session, principal: Principal, repo_id: str, *, datasets: bool = False
) -> tuple[Readable, str | None]:
    """Return the repository of an id, and the selector of its `main`. datasets: look among these, and nowhere else.

    A repository's own name comes first, then the alias of a base (clients read it in adapter configs and request it),
    then a name with a tag or version suffix. Raises `conflict` for an alias of several bases with different content.
    """
    targets = names.targets(repo_id)
    for target in targets:
        if target.pin is None and (found := _readable(session, principal, target, datasets)) is not None:
            return found, None
    if not datasets and (base := _by_alias(session, principal, repo_id)):
        return base, None
    for target in targets:
        if target.pin is not None and (found := _readable(session, principal, target, datasets)) is not None:
            return found, target.pin
    raise errors.repo_not_found(repo_id, principal)


def _readable(
    session: Session, principal: Principal, target: names.RepositoryCandidate, datasets: bool
) -> Readable | None:
    """Return a live repository, a dataset or one of any other kind; None if it is missing or unreadable."""
    try:
        found = resolve.readable(session, principal, RepositoryPath(target.namespace, target.name))
    except RegistryError as error:
        if error.code not in MISSING:
            raise
        return None
    return found if (found.repo.kind == "dataset") == datasets else None


def _by_alias(session: Session, principal: Principal, alias: str) -> Readable | None:
    """Return the base with an alias. Bases of several namespaces may have it if their newest versions are the same.

    Raises `conflict` otherwise, naming those that the caller may read.
    """
    found: list[tuple[Readable, str]] = []
    for row in base_store.by_alias(session, alias, principal.visible(), limit=MAX_SAME_ALIAS):
        base = resolve.readable(session, principal, RepositoryPath(row.namespace, row.name))
        newest = store.newest(session, base.repo.id, base.only)
        if newest is not None:
            found.append((base, newest.digest))
    if len({digest for _, digest in found}) > 1:
        several = " and ".join(f"{base.repo.label}" for base, _ in found)
        raise RegistryError(
            "conflict",
            f"{alias[:200]!r} is an alias of {several}, whose newest versions differ.",
            hint="Use the name of the base that you mean.",
        )
    return found[0][0] if found else None
