"""Delete versions, restore them while their bytes are kept, and purge them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.wire.repositories import DeletionView, VersionView
from lora_registry.auth.caller import Caller
from lora_registry.db.tables import Repository, Version
from lora_registry.events import audit
from lora_registry.keeping import collect
from lora_registry.keeping import store as kept
from lora_registry.repositories import resolve, store, usage, views
from lora_registry.repositories.paths import RepositoryPath, VersionPath
from lora_registry.repositories.versions import describe_derived
from lora_registry.runtime.clock import now
from lora_registry.tags import store as tag_store


def preview(caller: Caller, path: VersionPath) -> DeletionView:
    """Show what deleting a version would free, and when."""
    caller.require("maintainer", path.namespace)
    with caller.ctx.db.read() as session:
        resolve.repository(session, caller.principal, path.repository)
        _, version = resolve.version(session, caller.principal, path)
        return _preview(caller, session, [version.id])


def preview_repository(caller: Caller, path: RepositoryPath) -> DeletionView:
    """Show what deleting a repository would free, and when."""
    caller.require("maintainer", path.namespace)
    with caller.ctx.db.read() as session:
        repo = resolve.repository(session, caller.principal, path)
        live = store.list_versions(session, repo.id, before=None, limit=2**31 - 1)
        return _preview(caller, session, [version.id for version in live])


def _preview(caller: Caller, session: Session, version_ids: list[int]) -> DeletionView:
    """Other namespaces do not count: the answer must not tell what they have."""
    sizes = store.only_of(session, version_ids, caller.principal.visible())
    return DeletionView(
        versions=len(version_ids),
        blobs=len(sizes),
        bytes=sum(sizes.values()),
        after_seconds=caller.ctx.settings.gc_grace_seconds,
    )


def delete(caller: Caller, path: VersionPath, *, purge: bool = False, derived: bool = False, reason: str = "") -> None:
    """Turn a version into a tombstone: its number is never reused.

    Raises `in-use` if a tag points to it or a live version derives from it.

    Args:
        purge: remove the bytes that no other live version needs at once rather than after the grace period.
        derived: delete the live versions that derive from it too, with their own.
        reason: required by a purge, and recorded.
    """
    caller.require("admin" if purge else "maintainer", path.namespace)
    if (purge or derived) and not reason.strip():
        raise RegistryError("invalid-request", "A purge needs a reason, which is logged with it.")
    if derived and not purge:
        raise RegistryError("invalid-request", "Derived versions are deleted by a purge only.")
    with caller.ctx.db.write() as session:
        resolve.repository(session, caller.principal, path.repository, lock=True)
        _, version = resolve.version(session, caller.principal, path)
        doomed = [version, *(_descendants(session, version) if derived else ())]
        store.lock_versions(session, [each.id for each in doomed], exclusive=True)
        repos = store.repositories_by_id(session, {each.repository_id for each in doomed})
        _refuse_used(caller, session, doomed, repos)
        for each in doomed:
            kind = "version-purged" if purge else "version-deleted"
            bury(caller, session, repos[each.repository_id], each, kind=kind, reason=reason)
        digests = sorted({file.digest for file, _ in kept.stored_files(session, [each.id for each in doomed])})
    if purge:
        collect.purge(caller.ctx, digests, reason=f"purged: {reason}")


def undelete(caller: Caller, path: VersionPath) -> VersionView:
    """Restore a deleted version whose bytes are still kept.

    Raises `deleted` if they were removed or the repository was deleted, `conflict` if the version is not deleted or its
    content is another version by now.
    """
    caller.require("maintainer", path.namespace)
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path.repository, lock=True)
        version = resolve.tombstone(session, repo, path.selector)
        label = f"{path.repository}:v{version.number}"
        other = store.version_by_digest(session, repo.id, version.digest)
        if other is not None and other.deleted_at is None:
            raise RegistryError("conflict", f"The content of {label} is the version v{other.number} now.")
        origins = store.lock_versions(session, [edge.parent_id for edge in store.edges_up(session, [version.id])])
        if any(origin.deleted_at is not None for origin in origins):
            raise RegistryError(
                "conflict", f"A version that {label} derives from is deleted.", hint="Restore that version first."
            )
        needed = {file.digest for file, _ in kept.stored_files(session, [version.id])}
        if kept.rescue(session, needed).keys() != needed:
            raise RegistryError(
                "deleted",
                f"Bytes of {label} are not in the store any more.",
                hint="Push the files again: the same content is a new version.",
            )
        usage.add(session, path.namespace, size=usage.stored_bytes(session, [version.id]), versions=1)
        version.deleted_at = None
        session.add(version)
        audit.record(
            session,
            "version-restored",
            principal=caller.principal,
            namespace=path.namespace,
            subject=label,
            digest=version.digest,
        )
        session.flush()
        return views.version(session, caller.principal, repo, version)


def _descendants(session: Session, version: Version) -> list[Version]:
    found: set[int] = set()
    level = {version.id}
    while level:
        level = set(store.live_children(session, level)) - found
        found |= level
    return [row for _, row in sorted(store.versions_by_id(session, found).items())]


def _refuse_used(caller: Caller, session: Session, doomed: Sequence[Version], repos: dict[int, Repository]) -> None:
    """Raise `in-use` if one of the versions must stay. The first one is what the caller named."""
    ids = {version.id for version in doomed}
    labels = {v.id: f"{repos[v.repository_id].label}:v{v.number}" for v in doomed}
    named = labels[doomed[0].id]
    foreign = [v.id for v in doomed[1:] if not caller.principal.may("admin", repos[v.repository_id].namespace)]
    if foreign:
        detail = describe_derived(session, caller.principal, named, foreign)
        raise RegistryError("in-use", detail, hint="Only an administrator of their namespaces may delete them.")
    tags = tag_store.tags_of_versions(session, ids)
    for version in doomed:
        if tags.get(version.id):
            detail = f"The tag {tags[version.id][0]} points to {labels[version.id]}."
            raise RegistryError("in-use", detail, hint="Move the tag first.")
    if children := sorted(set(store.live_children(session, ids)) - ids):
        raise RegistryError("in-use", describe_derived(session, caller.principal, named, children))


def bury(caller: Caller, session: Session, repo: Repository, version: Version, *, kind: str, reason: str) -> None:
    """Turn a version into a tombstone, with an event of this kind. The caller has checked that nothing needs it."""
    version.deleted_at = now()
    session.add(version)
    usage.remove(session, repo.namespace, size=usage.stored_bytes(session, [version.id]), versions=1)
    audit.record(
        session,
        kind,
        principal=caller.principal,
        namespace=repo.namespace,
        subject=f"{repo.label}:v{version.number}",
        digest=version.digest,
        **({"reason": reason} if reason else {}),
    )
