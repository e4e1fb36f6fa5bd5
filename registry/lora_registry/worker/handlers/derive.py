"""From a recipe to a version, for every operation: gather what goes in, have a child make the files, commit them with
their lineage, report and tags in one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
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
from lora_registry.push import check
from lora_registry.push import store as uploads
from lora_registry.repositories import store as catalog
from lora_registry.repositories.insert import Derivation, Draft, insert
from lora_registry.repositories.paths import RepositoryPath
from lora_registry.runtime.clock import now
from lora_registry.tags import moves

CHILD = "lora_registry.worker.children.derive"

Files = list[dict[str, Any]]
"""Of a result, each `path`, `size`, `digest`: their bytes are in the store."""


@dataclass(frozen=True, slots=True)
class Result:
    """What is committed. facts: shown with the version. report: all that was found, kept under the job's id.

    told: what of it the job's own result repeats.
    """

    kind: Kind
    files: Files
    facts: dict[str, Any]
    report: dict[str, Any]
    told: dict[str, Any]


def adapter_handler(ctx: Context) -> Handler:
    """The handler of the operations whose result is an adapter, over an open context."""

    def run(job: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
        inputs = job.step("inputs", lambda: gather(ctx, spec))
        made = make(job, job.kind.name, inputs)
        facts = job.step("check", lambda: _checked(ctx, spec["base"], made["files"]))
        result = Result("adapter", made["files"], facts, made["report"], {})
        committed: dict[str, Any] = job.transaction(
            "commit", lambda session: commit(ctx, session, job.job_id, spec, result)
        )
        return committed

    return run


def make(job: JobContext, operation: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The files of an adapter that an operation makes, in the store, and what was told of the work."""
    made: dict[str, Any] = job.child(operation, f"{CHILD}:{operation}", inputs)
    return made


def gather(ctx: Context, spec: dict[str, Any]) -> dict[str, Any]:
    """What the child processes need: the recipe, and digests and sizes of all files that go in."""
    with ctx.db.read() as session:
        recipe = _recipe(session, spec["recipe"])
        versions = _versions(session, spec)
        files = {
            version_id: {file.path: [file.digest, file.size] for file in rows if file.stored}
            for version_id, rows in catalog.files_of(session, versions).items()
        }
        return {
            "recipe": msgspec.to_builtins(recipe),
            "base": files[spec["base"]],
            "inputs": [files[version_id] for version_id in spec["inputs"]],
        }


def _checked(ctx: Context, base_id: int, files: Files) -> dict[str, Any]:
    """A derived adapter passes the check that a pushed one passes; returns its facts. Raises `rejected`."""
    with ctx.db.read() as session:
        pin = check.pinned(session, catalog.versions_by_id(session, [base_id])[base_id])
    outcome = check.adapter(ctx, _entries(files), pin, accept_base=True)
    refuse(outcome.findings)
    return outcome.facts or {}


def commit(ctx: Context, session: Session, job_id: str, spec: dict[str, Any], result: Result) -> dict[str, Any]:
    """Make the result a version, or find the one that has its content; sets the tags and the job's result."""
    recipe = _recipe(session, spec["recipe"])
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
        base_version_id=spec["base"],
        parent_ids=(),
        facts=result.facts,
        fingerprint=None,
        message=spec["message"],
        meta={},
        derivation=Derivation(str(recipe.digest), tuple(spec["inputs"])),
    )
    namespace, _, name = recipe.target.partition("/")
    principal = Principal(spec["author"], "admin")
    repo, version, created = insert(session, principal, RepositoryPath(namespace, name), draft)
    for tag in spec["tags"]:
        moves.set_tag(session, principal, repo, tag, version, expect=moves.UNCONDITIONAL, reason=spec["message"])
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
                body=json.dumps(result.report, sort_keys=True),
                created_at=now(),
            )
        )
        enqueue.inspect(Caller(ctx, principal), session, repo, version)
    session.flush()
    return {"version": version.id, "digest": version.digest, "number": version.number, **result.told}


def _entries(files: Sequence[dict[str, Any]]) -> tuple[FileEntry, ...]:
    return tuple(sorted(FileEntry(file["path"], file["size"], Digest.parse(file["digest"])) for file in files))


def _recipe(session: Session, digest: str) -> Recipe:
    row = work.recipe(session, digest)
    if row is None:
        raise RegistryError("not-found", f"The recipe {digest} is gone.")
    return parse_recipe(row.body)


def _versions(session: Session, spec: dict[str, Any]) -> dict[int, Version]:
    """The base and what else goes in. Raises RegistryError `deleted` where one is gone since the job was asked for."""
    found = catalog.versions_by_id(session, [spec["base"], *spec["inputs"]])
    for version in found.values():
        if version.deleted_at is not None:
            raise RegistryError("deleted", f"An input of the job, {version.digest}, was deleted meanwhile.")
    return found
