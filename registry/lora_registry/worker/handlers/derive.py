"""From a recipe to a version, for every operation: gather the inputs, have a child make the files, commit them with
their lineage, report and tags in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import refuse
from lora_contract.manifest import FileEntry, Kind, Manifest
from lora_contract.recipe import Recipe, parse_recipe
from lora_registry.auth.caller import Caller
from lora_registry.auth.principals import Principal
from lora_registry.context import Context
from lora_registry.db.tables import ReportRow, Version
from lora_registry.jobs import enqueue
from lora_registry.jobs import store as work
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.jobs.specs import DeriveSpec, Ingredients
from lora_registry.push import check
from lora_registry.push import store as uploads
from lora_registry.repositories import store as catalog
from lora_registry.repositories.insert import Derivation, Draft, insert
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import now
from lora_registry.tags import moves
from lora_registry.worker.children import derive as child
from lora_registry.worker.children.derive import DerivedFiles, DeriveInput
from lora_registry.worker.children.files import MadeFile
from lora_registry.worker.handlers.stored import stored_files


@dataclass(frozen=True, slots=True)
class Result:
    """What is committed. facts: shown with the version. report: JSON, kept under the job's id. kept: of a merge."""

    kind: Kind
    files: tuple[MadeFile, ...]
    facts: dict[str, Any]
    report: str
    kept: float | UnsetType | None = UNSET


class Committed(msgspec.Struct, frozen=True):
    """The result of a job that makes a version: its row, its digest and its number."""

    version: int
    digest: str
    number: int
    kept: float | UnsetType | None = UNSET


def handler(ctx: Context) -> Handler[DeriveSpec]:
    """The handler of the operations whose result is an adapter, over an open context."""

    def run(job: JobContext, spec: DeriveSpec) -> Committed:
        made = make(job, job.step("inputs", gather, ctx, spec))
        facts = job.step("check", _checked, ctx, spec.base, made.files)
        result = Result("adapter", made.files, facts, made.report)
        return job.transaction("commit", commit, ctx, job.job_id, spec, result)

    return run


def make(job: JobContext, data: DeriveInput) -> DerivedFiles:
    """Have a child make the adapter of a recipe and store its files."""
    return job.child(data.recipe.operation, child.derive, data)


def gather(ctx: Context, spec: Ingredients) -> DeriveInput:
    """The recipe, and digests and sizes of all files of its inputs."""
    with ctx.db.read() as session:
        recipe = _recipe(session, spec.recipe)
        files = stored_files(session, list(_versions(session, spec)))
        return DeriveInput(recipe, files[spec.base], tuple(files[version_id] for version_id in spec.inputs))


def _checked(ctx: Context, base_id: int, files: Sequence[MadeFile]) -> dict[str, Any]:
    """Check a derived adapter as a pushed one is checked; return its facts. Raises `rejected`."""
    with ctx.db.read() as session:
        pin = check.pinned(session, catalog.versions_by_id(session, [base_id])[base_id])
    outcome = check.adapter(ctx, _entries(files), pin, accept_base=True)
    refuse(outcome.findings)
    return outcome.facts or {}


def commit(session: Session, ctx: Context, job_id: str, spec: DeriveSpec, result: Result) -> Committed:
    """Commit the result as a version, or find the one that has its content; set the tags and the job's result."""
    recipe = _recipe(session, spec.recipe)
    _versions(session, spec)
    entries = _entries(result.files)
    for entry in entries:
        uploads.remember_blob(session, str(entry.digest), entry.size, now())
    manifest = Manifest(
        kind=result.kind,
        files=entries,
        base=Digest.parse(recipe.base),
        recipe=recipe.digest,
        config={"format": "safetensors"},
    )
    draft = Draft(
        manifest=manifest,
        stored=frozenset(str(entry.digest) for entry in entries),
        base_version_id=spec.base,
        parent_ids=(),
        facts=result.facts,
        fingerprint=None,
        message=spec.message,
        meta={},
        derivation=Derivation(str(recipe.digest), spec.inputs),
    )
    namespace, _, name = recipe.target.partition("/")
    principal = Principal(spec.author, "admin")
    repo, version, created = insert(session, principal, RepositoryPath(namespace, name), draft)
    for tag in spec.tags:
        moves.set_tag(session, principal, repo, tag, version, expect=moves.UNCONDITIONAL, reason=spec.message)
    row = work.job(session, job_id)
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


def _entries(files: Sequence[MadeFile]) -> tuple[FileEntry, ...]:
    return tuple(sorted(FileEntry(file.path, file.size, Digest.parse(file.digest)) for file in files))


def _recipe(session: Session, digest: str) -> Recipe:
    row = work.recipe(session, digest)
    if row is None:
        raise RegistryError("not-found", f"The recipe {digest} is missing.")
    return parse_recipe(row.body)


def _versions(session: Session, spec: Ingredients) -> dict[int, Version]:
    """The base and the other inputs. Raises RegistryError `deleted` if one was deleted after the request."""
    found = catalog.versions_by_id(session, [spec.base, *spec.inputs])
    for version in found.values():
        if version.deleted_at is not None:
            raise RegistryError("deleted", f"An input of the job, {version.digest}, was deleted after the request.")
    return found
