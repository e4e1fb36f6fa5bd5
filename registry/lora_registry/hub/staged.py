"""Read what Hub clients staged of repositories that have no version yet, as if it were one."""

from __future__ import annotations

from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import VersionFile
from lora_registry.auth.caller import Caller
from lora_registry.db.dialect import database_now
from lora_registry.hub import errors, heads, revisions, store
from lora_registry.hub.heads import Head
from lora_registry.hub.paths import Call
from lora_registry.hub.revisions import RevisionInfo
from lora_registry.keeping import store as kept
from lora_registry.keeping.reading import Content
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.repositories.versions import FileLocation
from lora_registry.runtime.clock import iso


def show(caller: Caller, call: Call) -> RevisionInfo:
    """Return a version, or what is staged where there is none. Raises as `revisions.show`."""
    try:
        return revisions.show(caller, call)
    except RegistryError as error:
        head = _head(caller, call, error)
    assert head.staging is not None
    row = head.staging
    with caller.ctx.db.read() as session:
        private = row.namespace not in revisions.public(session, caller, {row.namespace})
    return RevisionInfo(
        namespace=row.namespace,
        kind="dataset" if row.kind == "dataset" else "model",
        number=0,
        commit=head.commit,
        repository_created_at=iso(row.created_at),
        created_at=iso(row.created_at),
        size=sum(size for _, size in head.files.values()),
        files=[VersionFile(path=path, size=size, digest=digest) for path, (digest, size) in sorted(head.files.items())],
        bases=[],
        private=private,
        yanked=None,
    )


def locate(caller: Caller, call: Call) -> tuple[FileLocation, str | None]:
    """Locate a file of a version, or a staged one. Raises as `revisions.locate`."""
    try:
        return revisions.locate(caller, call)
    except RegistryError as error:
        head = _head(caller, call, error)
    found = head.files.get(call.path)
    with caller.ctx.db.read() as session:
        blob = None if found is None else kept.blob(session, found[0])
    if blob is None:
        raise errors.entry_not_found(f"{call.repo} has no file {call.path[:200]!r} yet.", commit=head.commit)
    return FileLocation(call.path, Content.of(blob, call.path), "", head.commit), None


def refs(caller: Caller, call: Call) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return branches and tags with their commits."""
    try:
        main, tagged = revisions.refs(caller, call)
        return ([] if main is None else [("main", main)]), tagged
    except RegistryError as error:
        head = _head(caller, call, error)
    assert head.staging is not None
    with caller.ctx.db.read() as session:
        rows = store.branches(session, RepositoryPath(head.staging.namespace, head.staging.name), database_now(session))
    return [(row.branch or "main", row.commit_id) for row in rows], []


def namespace(caller: Caller, call: Call) -> str:
    """Return the namespace of a call's repository, which may have no version."""
    try:
        return revisions.namespace(caller, call)
    except RegistryError as error:
        head = _head(caller, call, error)
    assert head.staging is not None
    return head.staging.namespace


def has_version(caller: Caller, call: Call) -> bool:
    try:
        revisions.namespace(caller, call)
    except RegistryError as error:
        _head(caller, call, error)
        return False
    return True


def _head(caller: Caller, call: Call, error: RegistryError) -> Head:
    """Return what is staged where `revisions` found no repository. Raises `error` if there is nothing."""
    if error.facts.get("hub") != "RepoNotFound" or call.channel is not None:
        raise error
    with caller.ctx.db.read() as session:
        found = heads.visible(session, caller, call.repo, call.kind, call.revision)
    if found is None:
        raise error
    return found
