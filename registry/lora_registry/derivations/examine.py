"""Jobs that examine versions and make none: diff and reproduce."""

from __future__ import annotations

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.recipe import sources
from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import DiffRequest, ReproduceRequest
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import Repository, Version
from lora_registry.jobs import enqueue
from lora_registry.jobs import service as jobs
from lora_registry.jobs import store as work
from lora_registry.jobs.specs import DIFF, REPRODUCE, DiffSpec, ReproduceSpec
from lora_registry.repositories import resolve, store


def diff(caller: Caller, request: DiffRequest) -> JobView:
    """Compare two adapters, or find the job that did. Raises `conflict` for what is not an adapter."""
    with caller.ctx.db.write() as session:
        one, before = _adapter(session, caller.principal, request.before)
        other, after = _adapter(session, caller.principal, request.after)
        caller.require("writer", other.namespace)
        job_id = f"{DIFF.name}-{before.id}-{after.id}"
        title = f"diff {one.namespace}/{one.name}:v{before.number} {other.namespace}/{other.name}:v{after.number}"
        enqueue.examine(caller, session, other, after, DIFF, DiffSpec(before.id, after.id), job_id=job_id, title=title)
    return jobs.show(caller, job_id)


def reproduce(caller: Caller, request: ReproduceRequest) -> JobView:
    """Derive a version again and compare. Each request is a job of its own, but for one that has not ended yet.

    Raises `conflict` if the version was pushed, `deleted` if one of its inputs is gone.
    """
    with caller.ctx.db.write() as session:
        repo, version = resolve.by_text(session, caller.principal, request.version)
        caller.require("writer", repo.namespace)
        row = None if version.recipe_digest is None else work.recipe(session, version.recipe_digest)
        if row is None:
            raise RegistryError(
                "conflict",
                f"{repo.namespace}/{repo.name}:v{version.number} was pushed and not derived: it has no recipe.",
                hint="Look for a recipe with `lora-reg show`.",
            )
        inputs = _inputs(session, version, row.body)
        done = sum(report.kind == REPRODUCE.name for report in work.reports(session, version.id))
        job_id = f"{REPRODUCE.name}-{version.id}-{done + 1}"
        title = f"reproduce {repo.namespace}/{repo.name}:v{version.number}"
        assert version.base_version_id is not None, "what was derived has a base"
        spec = ReproduceSpec(recipe=row.digest, base=version.base_version_id, inputs=inputs, version=version.id)
        enqueue.examine(caller, session, repo, version, REPRODUCE, spec, job_id=job_id, title=title)
    status = caller.ctx.jobs.status(job_id)
    if status is not None and status.state in ("failed", "cancelled"):
        caller.ctx.jobs.retry(job_id)
    return jobs.show(caller, job_id)


def _inputs(session: Session, version: Version, recipe: bytes) -> tuple[int, ...]:
    """Ids of what went in, in the recipe's order: the lineage knows which versions its digests stood for."""
    edges = store.edges_up(session, [version.id])
    found = store.versions_by_id(session, [edge.parent_id for edge in edges if edge.relation == "input"])
    by_digest = {parent.digest: parent.id for parent in found.values()}
    return tuple(by_digest[digest] for digest in sources(recipe))


def _adapter(session: Session, principal: Principal, text: str) -> tuple[Repository, Version]:
    repo, version = resolve.by_text(session, principal, text)
    if repo.kind != "adapter":
        raise RegistryError("conflict", f"{text} is of kind {repo.kind}; adapters are compared.")
    return repo, version
