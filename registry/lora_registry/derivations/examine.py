"""Jobs that examine versions and create none: diff and reproduce."""

from __future__ import annotations

from sqlmodel import Session

from lora_contract.errors import RegistryError
from lora_contract.recipe import parse_recipe, sources
from lora_contract.wire.jobs import JobView
from lora_contract.wire.operations import DiffRequest, ReproduceRequest
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.db.tables import Repository, Version
from lora_registry.jobs import enqueue
from lora_registry.jobs import service as jobs
from lora_registry.jobs import store as job_store
from lora_registry.jobs.queues import queue_of
from lora_registry.jobs.specs import DIFF, REPRODUCE, DiffSpec, ReproduceSpec
from lora_registry.repositories import resolve, store


def diff(caller: Caller, request: DiffRequest) -> JobView:
    """Compare two adapters, or find the job that did. Raises `conflict` if one is not an adapter."""
    with caller.ctx.db.write() as session:
        before_repo, before = _adapter(session, caller.principal, request.before)
        after_repo, after = _adapter(session, caller.principal, request.after)
        caller.require("writer", after_repo.namespace)
        job_id = f"{DIFF.name}-{before.id}-{after.id}"
        label = f"{before_repo.label}:v{before.number}"
        title = f"diff {label} {after_repo.label}:v{after.number}"
        spec = DiffSpec(before.id, after.id)
        mentions = [(before.id, label)]
        enqueue.examine(caller, session, after_repo, after, DIFF, spec, job_id=job_id, title=title, mentions=mentions)
    return jobs.show(caller, job_id)


def reproduce(caller: Caller, request: ReproduceRequest) -> JobView:
    """Derive a version again and compare. Each request is a new job, unless the last one has not ended.

    Raises `conflict` if the version was pushed, `deleted` if one of its inputs was deleted.
    """
    with caller.ctx.db.write() as session:
        repo, version = resolve.by_text(session, caller.principal, request.version)
        caller.require("writer", repo.namespace)
        row = None if version.recipe_digest is None else job_store.recipe(session, version.recipe_digest)
        if row is None:
            raise RegistryError(
                "conflict",
                f"{repo.label}:v{version.number} was pushed, not derived: it has no recipe.",
                hint="Check for a recipe with `lora-reg show`.",
            )
        inputs = _inputs(session, version, row.body)
        reports = [report.id for report in job_store.reports(session, version.id) if report.kind == REPRODUCE.name]
        last = max((int(report_id.rpartition("-")[2]) for report_id in reports), default=0)  # older ones may be removed
        job_id = f"{REPRODUCE.name}-{version.id}-{last + 1}"
        title = f"reproduce {repo.label}:v{version.number}"
        assert version.base_version_id is not None, "derived versions have a base"
        spec = ReproduceSpec(recipe=row.digest, base=version.base_version_id, inputs=inputs, version=version.id)
        queue = queue_of(parse_recipe(row.body))
        enqueue.examine(caller, session, repo, version, REPRODUCE, spec, job_id=job_id, title=title, queue=queue)
    jobs.restart_ended(caller.ctx, job_id)
    return jobs.show(caller, job_id)


def _inputs(session: Session, version: Version, recipe: bytes) -> tuple[int, ...]:
    """Return the ids of the inputs, in the recipe's order: the lineage has the versions behind its digests."""
    edges = store.edges_up(session, [version.id])
    found = store.versions_by_id(session, [edge.parent_id for edge in edges if edge.relation == "input"])
    by_digest = {parent.digest: parent.id for parent in found.values()}
    return tuple(by_digest[digest] for digest in sources(recipe))


def _adapter(session: Session, principal: Principal, text: str) -> tuple[Repository, Version]:
    repo, version = resolve.by_text(session, principal, text)
    if repo.kind != "adapter":
        raise RegistryError("conflict", f"{text} is of kind {repo.kind}; expected an adapter.")
    return repo, version
