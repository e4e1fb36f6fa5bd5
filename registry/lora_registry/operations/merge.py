"""From a merge request to a job: references become digests, defaults are filled in, the recipe is the identity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from typing import Final

from lora_reg.spec import reference
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.recipe import Recipe, RecipeInput
from lora_reg.spec.wire.jobs import JobView
from lora_reg.spec.wire.operations import MergeRequest
from lora_registry.auth.principals import Principal, require
from lora_registry.catalog import resolve, store, tags
from lora_registry.catalog.insert import check_target
from lora_registry.context import Context
from lora_registry.db.tables import Version
from lora_registry.operations import jobs
from lora_registry.work import enqueue
from lora_registry.work import store as work

MERGE_VERSION: Final = 1
MAX_ADAPTERS: Final = 64


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe, and the ids of the versions that its digests stand for: other repositories may hold the same ones."""

    recipe: Recipe
    base: int
    inputs: tuple[int, ...]


def submit(ctx: Context, principal: Principal, request: MergeRequest) -> JobView:
    """Start a merge, or find the job of the same recipe; one that failed or was cancelled is started again.

    Tags are set when the merge is done, or at once where it is done already; a merge that is under way keeps the tags
    it was first asked for with. Raises `not-found`, `conflict` (bases differ, target of another kind), `unsupported`,
    `invalid-request`.
    """
    target = reference.parse(request.to).with_namespace(reference.DEFAULT_NAMESPACE)
    if not target.is_bare:
        raise RegistryError(
            "invalid-reference", f"The target {request.to!r} names a tag or version; give a repository."
        )
    require(principal, "writer", target.namespace or "")
    for tag in request.tags:
        reference.check_tag(tag)
    if not 0 < len(request.adapters) <= MAX_ADAPTERS:
        raise RegistryError(
            "invalid-request", f"A merge takes 1 to {MAX_ADAPTERS} adapters, not {len(request.adapters)}."
        )
    resolved = _resolve(ctx, principal, request, target.repository)
    job_id, done = _job(ctx, resolved.recipe)
    status = ctx.jobs.status(job_id)
    if done is not None and request.tags:
        _tag(ctx, principal, done, request)
    elif status is not None and status.state in ("failed", "cancelled"):
        _again(ctx, job_id)
    elif status is None:
        title = " + ".join(item.adapter for item in request.adapters) + f" -> {target.repository}"
        with ctx.db.write() as session:
            enqueue.merge(
                ctx,
                session,
                principal,
                resolved.recipe,
                job_id=job_id,
                base=resolved.base,
                inputs=resolved.inputs,
                namespace=target.namespace or "",
                title=title,
                tags=request.tags,
                message=request.message,
            )
    return jobs.show(ctx, principal, job_id)


def _job(ctx: Context, recipe: Recipe) -> tuple[str, int | None]:
    """The id of the recipe's job, and the version that it has made; None where it has made none yet.

    A job whose result was deleted has had its day: the same recipe is then another job.
    """
    with ctx.db.read() as session:
        for attempt in count(1):
            job_id = enqueue.merge_job_id(recipe, attempt)
            row = work.job(session, job_id)
            if row is None or row.result_version_id is None:
                break
            if store.versions_by_id(session, [row.result_version_id])[row.result_version_id].deleted_at is None:
                return job_id, row.result_version_id
    return job_id, None


def _tag(ctx: Context, principal: Principal, version_id: int, request: MergeRequest) -> None:
    """Set the tags that were asked for on a result that was there already."""
    with ctx.db.write() as session:
        version = store.versions_by_id(session, [version_id])[version_id]
        known = store.repositories_by_id(session, [version.repository_id])[version.repository_id]
        repo = resolve.repository(session, principal, known.namespace, known.name, lock=True)
        for tag in request.tags:
            tags.set_in_transaction(
                session, principal, repo, tag, version, expect=tags.ANYTHING, reason=request.message
            )


def _again(ctx: Context, job_id: str) -> None:
    try:
        ctx.jobs.retry(job_id)
    except RegistryError as error:
        if error.code != "conflict":  # another request for the same merge was faster: then it runs as this one wants
            raise


def _resolve(ctx: Context, principal: Principal, request: MergeRequest, target: str) -> Resolved:
    """Pin every input by digest. All adapters must pin the base that is merged into."""
    with ctx.db.read() as session:
        namespace, _, name = target.partition("/")
        check_target(store.repository(session, namespace, name), namespace, name, "model")
        pins: dict[str, str] = {}
        bases: dict[str, Version] = {}
        inputs, ids = [], []
        for item in request.adapters:
            if not math.isfinite(item.weight):
                raise RegistryError(
                    "invalid-request", f"The weight of {item.adapter} is {item.weight}; expected a finite number."
                )
            ref = reference.parse(item.adapter).with_namespace(reference.DEFAULT_NAMESPACE)
            repo, version = resolve.by_reference(session, principal, ref)
            if repo.kind != "adapter" or version.base_version_id is None:
                raise RegistryError("conflict", f"{ref} is of kind {repo.kind}; only adapters are merged.")
            base = store.versions_by_id(session, [version.base_version_id])[version.base_version_id]
            pins.setdefault(base.digest, f"{repo.namespace}/{repo.name}:v{version.number}")
            bases.setdefault(base.digest, base)
            inputs.append(RecipeInput(digest=version.digest, weight=item.weight))
            ids.append(version.id or 0)
        if len(pins) > 1:
            raise RegistryError(
                "conflict",
                f"{' and '.join(pins.values())} were made for different base versions.",
                way_out="Merge adapters of one base.",
            )
        base = next(iter(bases.values()))
        if request.base is not None:
            _, chosen = resolve.by_reference(
                session, principal, reference.parse(request.base).with_namespace(reference.DEFAULT_NAMESPACE)
            )
            if chosen.digest != base.digest:
                raise RegistryError(
                    "conflict", f"{request.base} is not the base version that {pins[base.digest]} pins."
                )
        if base.weights_absent:
            raise RegistryError(
                "unsupported",
                "The base was registered without its weights, so nothing can be merged into it here.",
                way_out="Add the base with its weights, or use `lora-reg merge --local --base-dir`.",
            )
        recipe = Recipe(
            operation="merge",
            operation_version=MERGE_VERSION,
            base=base.digest,
            inputs=tuple(inputs),
            target=target,
            dtype=request.dtype,
            allow_loss=request.allow_loss,
        )
        return Resolved(recipe, base.id or 0, tuple(ids))
