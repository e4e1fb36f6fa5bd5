"""Start validations. The same version, base, evaluation sets and suite give the same job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlmodel import Session

from lora_contract.policy import DEFAULT
from lora_contract.wire.gates import ValidateRequest
from lora_contract.wire.jobs import JobView
from lora_registry.auth.caller import Caller
from lora_registry.context import Context
from lora_registry.db.tables import Repository, Version
from lora_registry.gates.evaluation import RequiredValidation, require_measurable
from lora_registry.jobs import enqueue
from lora_registry.jobs import service as jobs
from lora_registry.jobs.engine.port import Queue
from lora_registry.jobs.queues import gpu_pays
from lora_registry.jobs.specs import EvaluationSetSpec
from lora_registry.policies.datasets import EvaluationSets, evaluation_sets
from lora_registry.repositories import resolve


def submit(caller: Caller, request: ValidateRequest) -> JobView:
    """Start a validation, or find its job. Raises `not-found`, `conflict`, `unsupported`, `forbidden`."""
    with caller.ctx.db.write() as session:
        repo, version = resolve.by_text(session, caller.principal, request.version)
        caller.require("writer", repo.namespace)
        base = resolve.base_of(session, repo, version)
        sets = evaluation_sets(session, caller.principal, DEFAULT, request.data, request.general)
        required = RequiredValidation(version, base, sets.key(version, base, request.precision))
        require_measurable(session, caller.ctx.settings, [required])
        start(caller, session, repo, [required], sets)
    retry(caller.ctx, [required.job_id])
    return jobs.show(caller, required.job_id)


def start(
    caller: Caller,
    session: Session,
    repo: Repository,
    missing: Sequence[RequiredValidation],
    sets: EvaluationSets,
) -> None:
    """Enqueue validations in the caller's transaction. Requires a writer: a reader may only read reports."""
    caller.require("writer", repo.namespace)
    named = [
        EvaluationSetSpec(role, dataset.version.id, dataset.label)
        for role, datasets in sets.by_role.items()
        for _, dataset in sorted(datasets.items())
    ]
    for required in missing:
        enqueue.validate(caller, session, repo, required.version, required.key, named, queue(session, required.base))


def queue(session: Session, base: Version) -> Queue:
    """Return the queue of a validation."""
    return "gpu" if gpu_pays(session, base) else "cpu"


def retry(ctx: Context, job_ids: Iterable[str]) -> None:
    """Restart jobs that failed or were cancelled."""
    for job_id in job_ids:
        jobs.restart_ended(ctx, job_id)
