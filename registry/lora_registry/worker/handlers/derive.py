"""From a recipe to a version, for every operation: collect the inputs, run a child to compute the files, commit them
with lineage, report and tags in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import refuse
from lora_contract.manifest import FileEntry, Kind, Manifest
from lora_contract.recipe import ExtractRecipe, MergeRecipe, Recipe, ResizeBaseRecipe, parse_recipe
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import everywhere
from lora_registry.context import Context
from lora_registry.db.tables import ReportRow, Version
from lora_registry.jobs import enqueue
from lora_registry.jobs import store as job_store
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.jobs.specs import DeriveSpec, RecipeSpec
from lora_registry.push import check
from lora_registry.repositories import store as catalog
from lora_registry.repositories.insert import Derivation, Draft, insert
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import now
from lora_registry.tags import moves
from lora_registry.worker import weights
from lora_registry.worker.children import derive as child
from lora_registry.worker.children.derive import DerivedFiles, DeriveInput
from lora_registry.worker.children.files import ResultFile
from lora_registry.worker.handlers.stored import stored_files


@dataclass(frozen=True, slots=True)
class Result:
    """What is committed.

    Args:
        facts: shown with the version.
        report: JSON, stored under the job's id.
        kept: of a merge.
        fingerprint: of a base, as canonical JSON.
        config: ModelPack's technical metadata.
    """

    kind: Kind
    files: tuple[ResultFile, ...]
    facts: dict[str, Any]
    report: str
    kept: float | UnsetType | None = UNSET
    fingerprint: bytes | None = None
    config: dict[str, str] = field(default_factory=lambda: {"format": "safetensors"})


class Committed(msgspec.Struct, frozen=True):
    """Result of a job that creates a version: its row id, digest and number."""

    version: int
    digest: str
    number: int
    kept: float | UnsetType | None = UNSET


def handler(ctx: Context) -> Handler[DeriveSpec]:
    """Return the handler of the operations that derive an adapter."""

    def run(job: JobContext, spec: DeriveSpec) -> Committed:
        derived = derive_files(job, job.step("inputs", gather, ctx, job, spec))
        facts = job.step("check", _check, ctx, spec.base, derived.files)
        result = Result("adapter", derived.files, facts, derived.report)
        return job.transaction("commit", commit, ctx, job.job_id, spec, result)

    return run


def derive_files(job: JobContext, data: DeriveInput) -> DerivedFiles:
    """Run a child that computes a recipe's adapter and stores its files."""
    return job.child(data.recipe.operation, child.derive, data)


def gather(ctx: Context, job: JobContext, spec: RecipeSpec) -> DeriveInput:
    """Load the recipe, and digests and sizes of all files of its inputs. Weights that are not stored are fetched."""
    with ctx.db.read() as session:
        recipe = _recipe(session, spec.recipe)
    weights.ensure(ctx, job, _checkpoints(recipe, spec))
    with ctx.db.read() as session:
        files = stored_files(session, list(_versions(session, spec)))
        return DeriveInput(recipe, files[spec.base], tuple(files[version_id] for version_id in spec.inputs))


def _checkpoints(recipe: Recipe, spec: RecipeSpec) -> tuple[int, ...]:
    """The inputs whose weights are read; to compose or resize adapters needs none."""
    match recipe:
        case MergeRecipe() | ResizeBaseRecipe():
            return (spec.base,)
        case ExtractRecipe():
            return (spec.base, *spec.inputs)
        case _:
            return ()


def _check(ctx: Context, base_id: int, files: Sequence[ResultFile]) -> dict[str, Any]:
    """Check a derived adapter like a pushed one; return its facts. Raises `rejected`."""
    with ctx.db.read() as session:
        pin = check.load_base(session, catalog.versions_by_id(session, [base_id])[base_id])
    placed = tuple(FileEntry(file.path, file.size, file.where) for file in files)
    outcome = check.adapter(ctx, placed, pin, accept_base=True)
    refuse(outcome.findings)
    return outcome.facts or {}


def commit(session: Session, ctx: Context, job_id: str, spec: DeriveSpec, result: Result) -> Committed:
    """Commit the result as a version, or reuse one with the same content; set the tags and the job's result."""
    recipe = _recipe(session, spec.recipe)
    _versions(session, spec)
    entries = _entries(result.files)
    made = {file.where: file.size for file in result.files if file.life is not None}
    for where, size in made.items():
        if ctx.blobs.size(where) != size:
            raise RegistryError(
                "job-failed", f"The result {where.short} was left over for too long and was removed from the store."
            )
    manifest = Manifest(
        kind=result.kind,
        files=entries,
        base=Digest.parse(recipe.base),
        fingerprint=None if result.fingerprint is None else Digest.of(result.fingerprint),
        recipe=recipe.digest,
        config=result.config,
    )
    draft = Draft(
        manifest=manifest,
        stored=frozenset(str(entry.digest) for entry in entries),
        base_version_id=spec.base,
        parent_ids=(),
        facts=result.facts,
        fingerprint=result.fingerprint,
        message=spec.message,
        meta={},
        derivation=Derivation(str(recipe.digest), spec.inputs),
        made=made,
    )
    namespace, _, name = recipe.target.partition("/")
    principal = everywhere(spec.author)
    repo, version, created = insert(session, principal, RepositoryPath(namespace, spec.spelling or name), draft)
    for tag in spec.tags:
        moves.set_tag(session, principal, repo, tag, version, expect=moves.UNCONDITIONAL, reason=spec.message)
    row = job_store.job(session, job_id)
    if row is not None:
        row.result_version_id = version.id
        session.add(row)
    if created:
        session.add(
            ReportRow(
                id=job_id,
                kind=recipe.operation,
                version_id=version.id,
                passed=True,
                body=result.report,
                created_at=now(),
            )
        )
        enqueue.inspect(Caller(ctx, principal), session, repo, version)
    session.flush()
    return Committed(version.id, version.digest, version.number, result.kept)


def _entries(files: Sequence[ResultFile]) -> tuple[FileEntry, ...]:
    return tuple(sorted(FileEntry(file.path, file.size, Digest.parse(file.digest)) for file in files))


def _recipe(session: Session, digest: str) -> Recipe:
    row = job_store.recipe(session, digest)
    if row is None:
        raise RegistryError("not-found", f"The recipe {digest} is missing.")
    return parse_recipe(row.body)


def _versions(session: Session, spec: RecipeSpec) -> dict[int, Version]:
    """Load the base and the other inputs. Raises RegistryError `deleted` if one was deleted after the request."""
    found = catalog.versions_by_id(session, [spec.base, *spec.inputs])
    for version in found.values():
        if version.deleted_at is not None:
            raise RegistryError("deleted", f"An input of the job, {version.digest}, was deleted after the request.")
    return found
