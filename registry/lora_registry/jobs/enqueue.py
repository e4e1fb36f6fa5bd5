"""Enqueue jobs: the row that describes a job and the engine's job, in the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeAlias

from sqlmodel import Session, col

from lora_contract.recipe import Recipe
from lora_contract.validation import ValidationKey
from lora_registry.auth.caller import Caller
from lora_registry.context import Context
from lora_registry.db.dialect import insert, insert_ignore
from lora_registry.db.tables import JobRow, RecipeRow, Repository, Version
from lora_registry.jobs import quota
from lora_registry.jobs.engine.kinds import JobKind, SpecT
from lora_registry.jobs.engine.port import Queue
from lora_registry.jobs.queues import queue_of
from lora_registry.jobs.specs import DERIVE, INSPECT, VALIDATE, DeriveSpec, EvaluationSetSpec, InspectSpec, ValidateSpec
from lora_registry.runtime.clock import now

Mentions: TypeAlias = Sequence[tuple[int, str]]
"""Versions of other repositories that the texts of a job name: row id, and name as it is there."""


def inspect(caller: Caller, session: Session, repo: Repository, version: Version) -> str:
    """Enqueue the first validation of a version; return the job's id."""
    job_id = f"{INSPECT.name}-{version.id}-{version.digest[7:23]}"
    title = f"inspect {repo.label}:v{version.number}"
    _insert_row(session, caller, job_id, INSPECT.name, repo.namespace, title, subject=version.id)
    _enqueue(caller.ctx, session, INSPECT, InspectSpec(version.id), job_id)
    return job_id


def validation_job_id(version: Version, key: ValidationKey) -> str:
    """Id of the job and of its report. Contains the row's id, since another repository may hold the same content."""
    return f"{VALIDATE.name}-{version.id}-{key.digest.hex}"


def validate(
    caller: Caller,
    session: Session,
    repo: Repository,
    version: Version,
    key: ValidationKey,
    sets: Sequence[EvaluationSetSpec],
    queue: Queue,
) -> None:
    """Enqueue a validation; the same one again is a no-op."""
    names = ", ".join(dict.fromkeys(entry.name for entry in sets))
    title = f"validate {repo.label}:v{version.number}" + (f" on {names}" if names else "")
    job_id = validation_job_id(version, key)
    mentions = [(entry.version, entry.name) for entry in sets]
    _insert_row(session, caller, job_id, VALIDATE.name, repo.namespace, title, mentions, subject=version.id)
    spec = ValidateSpec(version.id, tuple(sets), key.precision)
    _enqueue(caller.ctx, session, VALIDATE, spec, job_id, queue)


def examine(
    caller: Caller,
    session: Session,
    repo: Repository,
    version: Version,
    kind: JobKind[SpecT],
    spec: SpecT,
    *,
    job_id: str,
    title: str,
    mentions: Mentions = (),
    queue: Queue = "cpu",
) -> None:
    """Enqueue a job that reports on `version`; the same id again is a no-op."""
    _insert_row(session, caller, job_id, kind.name, repo.namespace, title, mentions, subject=version.id)
    _enqueue(caller.ctx, session, kind, spec, job_id, queue)


def derived_job_id(recipe: Recipe, attempt: int = 1) -> str:
    """attempt: incremented each time the previous result was deleted."""
    return f"{recipe.operation}-{recipe.digest.hex}" + (f"-{attempt}" if attempt > 1 else "")


def derive(
    caller: Caller,
    session: Session,
    recipe: Recipe,
    *,
    job_id: str,
    base: int,
    inputs: Sequence[int],
    namespace: str,
    spelling: str,
    title: str,
    mentions: Mentions,
    tags: list[str],
    message: str,
) -> None:
    """Record a recipe and enqueue its job; the same job again is a no-op.

    base, inputs: ids of versions. namespace, spelling: of the target, and its name as the request writes it.
    """
    digest = str(recipe.digest)
    session.execute(insert_ignore(session, RecipeRow).values(digest=digest, body=recipe.to_bytes(), created_at=now()))
    _insert_row(session, caller, job_id, recipe.operation, namespace, title, mentions, recipe=digest)
    spec = DeriveSpec(
        recipe=digest,
        base=base,
        inputs=tuple(inputs),
        tags=tuple(tags),
        message=message,
        author=caller.principal.name,
        spelling=spelling,
    )
    _enqueue(caller.ctx, session, DERIVE[recipe.operation], spec, job_id, queue_of(recipe))


def _insert_row(
    session: Session,
    caller: Caller,
    job_id: str,
    kind: str,
    namespace: str,
    title: str,
    mentions: Mentions = (),
    *,
    subject: int | None = None,
    recipe: str | None = None,
) -> None:
    if kind != INSPECT.name:
        quota.admit(session, caller.ctx.jobs.rows, namespace, job_id)
    values = {
        "id": job_id,
        "kind": kind,
        "namespace": namespace,
        "title": title,
        "mentions": json.dumps(list(dict.fromkeys(mentions))),
        "author": caller.principal.name,
        "created_at": now(),
        "recipe_digest": recipe,
        "subject_version_id": subject,
    }
    # A row that exists is locked: whoever removes old jobs has removed it before, with the engine's, or leaves both.
    session.execute(
        insert(session.connection(), JobRow)
        .values(**values)
        .on_conflict_do_update(index_elements=[col(JobRow.id)], set_={"kind": kind})
    )


def _enqueue(
    ctx: Context, session: Session, kind: JobKind[SpecT], spec: SpecT, job_id: str, queue: Queue = "cpu"
) -> None:
    session.flush()
    ctx.jobs.enqueue(session, kind, spec, job_id=job_id, queue=queue)
