"""From a request to a job: the recipe is the identity. Shared by merge, compose, extract, resize and convert.

Each operation resolves its request into a recipe. Finding the recipe's job, restarting it and setting tags is the same
for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from sqlmodel import Session

from lora_contract import reference
from lora_contract.errors import RegistryError
from lora_contract.manifest import Kind
from lora_contract.recipe import Recipe
from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import DeriveRequest
from lora_registry.auth.caller import Caller
from lora_registry.context import Context
from lora_registry.jobs import enqueue
from lora_registry.jobs import service as jobs
from lora_registry.jobs import store as job_store
from lora_registry.repositories import resolve, store
from lora_registry.repositories.insert import check_target
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.tags import moves


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe, and the ids of the versions that its digests resolved to: several versions may have the same content.

    title: the inputs, for display. mentions: the versions that it names.
    """

    recipe: Recipe
    base: int
    inputs: tuple[int, ...]
    title: str
    mentions: tuple[tuple[int, str], ...]


def submit(
    caller: Caller,
    request: DeriveRequest,
    kind: Kind,
    resolve_recipe: Callable[[Session, str], ResolvedRecipe],
) -> JobView:
    """Start a job, or find the one with the same recipe; restart it if it failed or was cancelled.

    Tags are set when the job is done, or at once if it is already done; a queued or running job keeps the tags of its
    first request. Raises `not-found`, `conflict` (bases differ, target of another kind), `unsupported`,
    `invalid-request`.

    Args:
        kind: of the result.
        resolve_recipe: pins the inputs, given a session and the target's `namespace/name`.
    """
    target = reference.parse(request.to).with_namespace(reference.DEFAULT_NAMESPACE)
    if not target.is_bare:
        raise RegistryError(
            "invalid-reference", f"The target {request.to!r} names a tag or version; give a repository."
        )
    path = RepositoryPath(target.namespace or "", target.name)
    caller.require("writer", path.namespace)
    for tag in request.tags:
        reference.check_tag(tag)
    with caller.ctx.db.read() as session:
        check_target(store.repository(session, path), path, kind)
        # In lower case: the same request in another case of letters is the same recipe.
        found = resolve_recipe(session, f"{path.namespace}/{path.name}")
    job_id, done = _job(caller.ctx, found.recipe)
    status = caller.ctx.jobs.status(job_id)
    if done is not None and request.tags:
        _tag(caller, done, request)
    elif status is not None:
        jobs.restart_ended(caller.ctx, job_id)
    else:
        with caller.ctx.db.write() as session:
            enqueue.derive(
                caller,
                session,
                found.recipe,
                job_id=job_id,
                base=found.base,
                inputs=found.inputs,
                namespace=path.namespace,
                spelling=path.spelling,
                title=f"{found.title} -> {path}",
                mentions=found.mentions,
                tags=request.tags,
                message=request.message,
            )
    return jobs.show(caller, job_id)


def _job(ctx: Context, recipe: Recipe) -> tuple[str, int | None]:
    """Return the id of the recipe's job, and the version that it created, or None.

    If that version was deleted, the same recipe is a new job.
    """
    with ctx.db.read() as session:
        for attempt in count(1):
            job_id = enqueue.derived_job_id(recipe, attempt)
            row = job_store.job(session, job_id)
            if row is None and job_store.report(session, job_id) is not None:
                continue  # of a deleted version, and the job was removed before its report
            if row is None or row.result_version_id is None:
                break
            if store.versions_by_id(session, [row.result_version_id])[row.result_version_id].deleted_at is None:
                return job_id, row.result_version_id
    return job_id, None


def _tag(caller: Caller, version_id: int, request: DeriveRequest) -> None:
    """Set the requested tags on an existing result."""
    with caller.ctx.db.write() as session:
        version = store.versions_by_id(session, [version_id])[version_id]
        row = store.repositories_by_id(session, [version.repository_id])[version.repository_id]
        repo = resolve.repository(session, caller.principal, RepositoryPath(row.namespace, row.name), lock=True)
        for tag in request.tags:
            moves.set_tag(
                session, caller.principal, repo, tag, version, expect=moves.UNCONDITIONAL, reason=request.message
            )
