"""From an id and a revision, as a Hub client names them, to a version. Says which of the two is missing.

What `main` is, which ids are aliases, and what a yanked version answers is reasoned in
docs/decisions/hub-dialect.md.
"""

from __future__ import annotations

import msgspec

from lora_reg.spec.digest import Digest
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.wire import VersionView
from lora_registry.auth.principals import Principal
from lora_registry.catalog import base_store, resolve, store, views
from lora_registry.catalog.versions import Located
from lora_registry.context import Context
from lora_registry.db.tables import Repository, Version
from lora_registry.hf import errors, names
from lora_registry.hf.paths import Call

MISSING = ("not-found", "deleted", "invalid-reference")
MAX_NUMBERS = 1000
"""How many versions `refs` names, newest first."""


def find(ctx: Context, principal: Principal, call: Call) -> tuple[Repository, Version]:
    """The version that a call means. Raises `not-found` as the Hub's RepoNotFound or RevisionNotFound."""
    repo, pin = repository(ctx, principal, call.repo)
    where, wanted = f"{repo.namespace}/{repo.name}", names.selector(call.revision)
    if wanted is None:
        raise errors.revision_not_found(f"{call.revision[:200]!r} is no revision of {where}.")
    with ctx.db.read() as session:
        if wanted == names.MAIN:
            wanted = pin or names.LATEST
            if pin is None and call.channel is not None:
                # A base is no stage of a rollout: it is needed under every channel, and few people tag one.
                tagged = repo.kind != "base" or store.tag(session, repo.id or 0, call.channel) is not None
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


def view(ctx: Context, repo: Repository, version: Version) -> VersionView:
    """The version with the files that can be downloaded: a base may have been registered without its weights."""
    with ctx.db.read() as session:
        whole = views.version(session, repo, version)
        stored = {row.path for row in store.files_of(session, [version.id or 0]).get(version.id or 0, []) if row.stored}
    return msgspec.structs.replace(whole, files=[file for file in whole.files if file.path in stored])


def locate(ctx: Context, principal: Principal, call: Call) -> tuple[Located, str | None]:
    """Where a file is, and the reason where its version is yanked. Raises EntryNotFound, and what `find` raises."""
    repo, version = find(ctx, principal, call)
    with ctx.db.read() as session:
        row = store.file(session, version.id or 0, call.path)
    if row is None or not row.stored:
        why = "has no file" if row is None else "was registered without"
        detail = f"{repo.namespace}/{repo.name}:v{version.number} {why} {call.path[:200]!r}."
        raise errors.entry_not_found(detail, commit=version.commit_id)
    return Located(
        row.path, Digest.parse(row.digest), row.size, version.digest, version.commit_id
    ), version.yanked_reason


def refs(ctx: Context, principal: Principal, call: Call) -> tuple[str | None, list[tuple[str, str]]]:
    """The commit of `main` (None where nothing may be served as such), and name and commit of every tag and version.

    Tags on a yanked version are left out, as they cannot be resolved.
    """
    repo, _ = repository(ctx, principal, call.repo)
    try:
        main: str | None = find(ctx, principal, call)[1].commit_id
    except RegistryError as error:
        if error.facts.get("hub") != "RevisionNotFound":
            raise
        main = None
    with ctx.db.read() as session:
        tagged = store.tags(session, [repo.id or 0])
        targets = store.versions_by_id(session, (tag.version_id for tag in tagged))
        live = [(tag.name, targets[tag.version_id]) for tag in tagged]
        result = [(name, version.commit_id) for name, version in live if version.yanked_reason is None]
        result += [(f"v{number}", commit) for number, commit in store.commits(session, repo.id or 0, limit=MAX_NUMBERS)]
    return main, result


def repository(ctx: Context, principal: Principal, repo_id: str) -> tuple[Repository, str | None]:
    """The repository that an id means, and what stands for its `main`. Raises RepoNotFound.

    A name of ours comes first, then the alias of a base (what adapters' configs hold, so clients ask for it here),
    then a name with a tag or a version behind it.
    """
    targets = names.targets(repo_id)
    plain = [target for target in targets if target.pin is None]
    pinned = [target for target in targets if target.pin is not None]
    with ctx.db.read() as session:

        def first(candidates: list[names.Target]) -> tuple[Repository, str | None] | None:
            for target in candidates:
                try:
                    repo = resolve.repository(session, principal, target.namespace, target.name)
                except RegistryError as error:
                    if error.code not in MISSING:
                        raise
                    continue
                if repo.kind != "dataset":
                    return repo, target.pin
            return None

        if found := first(plain):
            return found
        if base := base_store.by_alias(session, repo_id, namespace=principal.visible()):
            return base, None
        if found := first(pinned):
            return found
    raise errors.repo_not_found(repo_id)
