"""Create and delete repositories, their tags and branches, for Hub clients.

A branch is a tag that commits move: a commit to it makes a version on top of its target, and moves it there.
"""

from __future__ import annotations

from typing import Any

from lora_contract import reference
from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.db.dialect import database_now
from lora_registry.db.tables import Namespace
from lora_registry.events import audit
from lora_registry.hub import errors, heads, names, store
from lora_registry.hub.revisions import find_repository
from lora_registry.repositories import service as repositories
from lora_registry.repositories import store as version_store
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.tags import service as tags
from lora_registry.tags.moves import UNCONDITIONAL, Precondition

Json = dict[str, Any]

KINDS = ("model", "dataset")
MAX_TEXT = 4096


def create(caller: Caller, request: Json) -> tuple[RepositoryPath, str, bool]:
    """Create a repository, which has no version yet. Return it, its kind, and whether it is new.

    Raises `forbidden`, `unsupported` for spaces, `invalid-request` for one that should be more private than its
    namespace, `invalid-reference`.
    """
    kind = request.get("type") or "model"
    if kind not in KINDS:
        raise RegistryError("unsupported", f"This registry has models and datasets, and no {str(kind)[:40]}s.")
    path = _path(caller, request)
    if not caller.principal.may("writer", path.namespace):
        caller.require_signed_in()
        # The same for a namespace that does not exist, for one that is hidden, and for one that is not.
        raise RegistryError("forbidden", f"The token may not create repositories in {path.namespace!r}.")
    private = request.get("visibility") == "private" or request.get("private") is True
    with caller.ctx.db.write() as session:
        at = database_now(session)
        repo = version_store.repository(session, path, lock=True)
        if repo is not None:
            if repo.deleted_at is not None:
                raise RegistryError("invalid-reference", f"{path} was deleted; its name cannot be used again.")
            if (repo.kind == "dataset") != (kind == "dataset"):
                raise RegistryError("invalid-request", f"{path} is of kind {repo.kind}.", hint="Choose another name.")
            return path, kind, False
        if store.staging(session, path, "", at) is not None:
            return path, kind, False
        reference.check_new_namespace(path.namespace)
        home = session.get(Namespace, path.namespace)
        if private and home is not None and home.visibility != "private":
            raise RegistryError(
                "invalid-request",
                f"{path} cannot be private: everything in {path.namespace} is {home.visibility}.",
                hint="Create it in a private namespace, or without `private`: a namespace says who may read it.",
            )
        heads.create(session, caller, path, kind, "")
        audit.record(
            session,
            "repository-announced",
            principal=caller.principal,
            namespace=path.namespace,
            subject=str(path),
            of=kind,
        )
    return path, kind, True


def delete(caller: Caller, request: Json) -> None:
    """Delete a repository as the native API does, or what is staged of one that has no version."""
    path = _path(caller, request)
    kind = request.get("type") or "model"
    with caller.ctx.db.read() as session:
        repo = version_store.repository(session, path)
        staged = store.branches(session, path, database_now(session))
    exists = repo is not None and repo.deleted_at is None
    if exists:
        assert repo is not None
        exists = (repo.kind == "dataset") == (kind == "dataset")
    if not exists and not staged:
        raise errors.repo_not_found(str(path), caller.principal)
    heads.writable(caller, str(path))
    if exists:
        repositories.delete(caller, path)
    with caller.ctx.db.write() as session:
        store.remove(session, [row.id for row in staged])


def _path(caller: Caller, request: Json) -> RepositoryPath:
    """Return what a request names. Without a namespace: the only one of the caller's token, or the default."""
    name, namespace = request.get("name"), request.get("organization")
    if not isinstance(name, str) or not (namespace is None or isinstance(namespace, str)):
        raise RegistryError("invalid-request", "The request has no name of a repository.")
    if not namespace and "/" in name:
        namespace, _, name = name.partition("/")
    namespace = namespace or caller.principal.only_namespace() or reference.DEFAULT_NAMESPACE
    return RepositoryPath(reference.check_namespace(namespace), reference.check_name(name))


def add_tag(caller: Caller, repo_id: str, kind: str, revision: str, tag: str, message: str) -> None:
    """Create a tag. Raises `exists` if there is one, `tag-gated`, `not-found` as RevisionNotFound."""
    path = _existing(caller, repo_id, kind)
    reference.check_tag(tag)
    _move(caller, path, tag, revision, message)


def remove_tag(caller: Caller, repo_id: str, kind: str, tag: str) -> None:
    path = _existing(caller, repo_id, kind)
    try:
        tags.remove(caller, path, tag, expect=UNCONDITIONAL, reason="removed by a Hub client")
    except RegistryError as error:
        if error.code != "not-found":
            raise
        raise errors.revision_not_found(error.detail) from error


def add_branch(caller: Caller, repo_id: str, kind: str, branch: str, start: str) -> None:
    """Create a branch: a tag on the version that it starts from; of a repository without a version, an empty one."""
    path = heads.writable(caller, repo_id)
    if heads.branch_of(branch) == "":
        raise RegistryError("exists", "The branch main exists already.")
    reference.check_tag(branch)
    with caller.ctx.db.read() as session:
        repo = version_store.repository(session, path)
        has_versions = repo is not None and version_store.newest(session, repo.id) is not None
    if has_versions:
        _move(caller, _existing(caller, repo_id, kind), branch, start, "branch created by a Hub client")
        return
    with caller.ctx.db.write() as session:
        heads.read(session, caller, path, kind, "", lock=True)
        if store.staging(session, path, branch, database_now(session)) is not None:
            raise RegistryError("exists", f"The branch {branch} exists already.")
        heads.create(session, caller, path, kind, branch)


def remove_branch(caller: Caller, repo_id: str, kind: str, branch: str) -> None:
    path = heads.writable(caller, repo_id)
    if heads.branch_of(branch) == "":
        raise RegistryError("forbidden", "The branch main cannot be deleted.", hint="Delete the repository.")
    with caller.ctx.db.write() as session:
        row = store.staging(session, path, branch, database_now(session), lock=True)
        if row is not None:
            store.remove(session, [row.id])
    try:
        remove_tag(caller, repo_id, kind, branch)
    except RegistryError:
        if row is None:
            raise


def _move(caller: Caller, path: RepositoryPath, tag: str, revision: str, reason: str) -> None:
    target = names.selector(revision.removeprefix("refs/heads/"))
    if target is None:
        raise errors.revision_not_found(f"{revision[:200]!r} is not a revision of {path}.")
    try:
        tags.move(caller, path, tag, target=target, expect=Precondition(absent=True), reason=reason[:MAX_TEXT])
    except RegistryError as error:
        if error.code == "tag-moved":
            raise RegistryError("exists", f"The tag {tag} of {path} exists already.") from error
        if error.code == "not-found":
            raise errors.revision_not_found(error.detail) from error
        raise


def _existing(caller: Caller, repo_id: str, kind: str) -> RepositoryPath:
    """Return a repository that has versions and that the caller may write to."""
    path = heads.writable(caller, repo_id)
    with caller.ctx.db.read() as session:
        at = database_now(session)
        if version_store.repository(session, path) is None and store.branches(session, path, at):
            raise errors.revision_not_found(f"{path} has no version yet.")
        found, _ = find_repository(session, caller.principal, str(path), datasets=kind == "dataset")
    return RepositoryPath(found.repo.namespace, found.repo.name)
