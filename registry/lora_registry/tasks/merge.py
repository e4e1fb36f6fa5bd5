"""The merge job: plan, one step per file of the result, commit as a version with its lineage in one transaction."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from sqlmodel import Session

from lora_kernels.merging import TensorStats, check_kept, merge_report
from lora_reg.spec.digest import Digest
from lora_reg.spec.errors import RegistryError
from lora_reg.spec.manifest import FileEntry, Manifest
from lora_reg.spec.recipe import Recipe, parse_recipe
from lora_registry.auth.principals import Principal
from lora_registry.catalog import store as catalog
from lora_registry.catalog import tags
from lora_registry.catalog.insert import Derivation, Draft, insert
from lora_registry.context import Context
from lora_registry.db.tables import Report, Version
from lora_registry.jobs.kinds import Handler, JobContext
from lora_registry.push import store as uploads
from lora_registry.runtime.clock import now
from lora_registry.work import enqueue
from lora_registry.work import store as work

CHILD = "lora_registry.tasks.merge_child"


def handler(ctx: Context) -> Handler:
    """The handler of `merge` over an open context."""

    def run(job: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
        inputs = job.step("inputs", lambda: _inputs(ctx, spec))
        plan = job.child("plan", f"{CHILD}:plan", inputs)
        merged = []
        for number, file in enumerate(plan["files"]):
            job.progress(
                "merge",
                f"{file} ({number + 1} of {len(plan['files'])})",
                done=number,
                total=len(plan["files"]),
                unit="files",
            )
            merged.append(job.child(f"merge {file}", f"{CHILD}:shard", {**inputs, "file": file}))
        report = job.step("judge", _judge, merged, inputs["allow_loss"])
        side = job.child("side files", f"{CHILD}:side_files", inputs)
        files = [*merged, *side["files"]]
        result: dict[str, Any] = job.transaction(
            "commit", lambda session: _commit(ctx, session, job.job_id, spec, files, report)
        )
        return result

    return run


def _inputs(ctx: Context, spec: dict[str, Any]) -> dict[str, Any]:
    """What the child processes need: digests and sizes of all files that go in."""
    with ctx.db.read() as session:
        recipe = _recipe(session, spec["recipe"])
        versions = _versions(session, spec)
        files = {
            version_id: {file.path: [file.digest, file.size] for file in rows}
            for version_id, rows in catalog.files_of(session, versions).items()
        }
        return {
            "base": files[spec["base"]],
            "adapters": [
                {"files": files[version_id], "weight": item.weight}
                for version_id, item in zip(spec["inputs"], recipe.inputs, strict=True)
            ],
            "dtype": recipe.dtype,
            "allow_loss": recipe.allow_loss,
        }


def _judge(merged: list[dict[str, Any]], allow_loss: bool) -> dict[str, Any]:
    """Refuse a merge that loses the adapter in rounding. Raises RegistryError `rejected`."""
    stats = [msgspec.convert(item, TensorStats) for file in merged for item in file["tensors"]]
    check_kept(stats, **({"min_kept": None} if allow_loss else {}))
    report: dict[str, Any] = msgspec.to_builtins(merge_report(stats, files=[], ignored=[]))
    return report


def _commit(
    ctx: Context,
    session: Session,
    job_id: str,
    spec: dict[str, Any],
    files: list[dict[str, Any]],
    report: dict[str, Any],
) -> dict[str, Any]:
    recipe = _recipe(session, spec["recipe"])
    _versions(session, spec)
    principal = Principal(spec["author"], "admin")
    entries = tuple(sorted(FileEntry(file["path"], file["size"], Digest.parse(file["digest"])) for file in files))
    for entry in entries:
        uploads.remember_blob(session, str(entry.digest), entry.size, now())
    manifest = Manifest(
        kind="model",
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
        facts={
            "operation": recipe.operation,
            "kept": report["kept"],
            "cosine": report["cosine"],
            "tensors": len(report["tensors"]),
        },
        fingerprint=None,
        message=spec["message"],
        meta={},
        derivation=Derivation(str(recipe.digest), tuple(spec["inputs"])),
    )
    namespace, _, name = recipe.target.partition("/")
    repo, version, created = insert(session, principal, namespace, name, draft)
    for tag in spec["tags"]:
        tags.set_in_transaction(session, principal, repo, tag, version, expect=tags.ANYTHING, reason=spec["message"])
    row = work.job(session, job_id)
    if row is not None:
        row.result_version_id = version.id
        session.add(row)
    if created:
        session.add(
            Report(
                id=job_id,
                kind="merge",
                version_id=version.id or 0,
                passed=True,
                body=json.dumps(report, sort_keys=True),
                created_at=now(),
            )
        )
        enqueue.inspect(ctx, session, principal, repo, version)
    session.flush()
    return {"version": version.id, "digest": version.digest, "number": version.number, "kept": report["kept"]}


def _recipe(session: Session, digest: str) -> Recipe:
    row = work.recipe(session, digest)
    if row is None:
        raise RegistryError("not-found", f"The recipe {digest} is gone.")
    return parse_recipe(row.body)


def _versions(session: Session, spec: dict[str, Any]) -> dict[int, Version]:
    """The base and the adapters. Raises RegistryError `deleted` where one is gone since the merge was asked for."""
    found = catalog.versions_by_id(session, [spec["base"], *spec["inputs"]])
    for version in found.values():
        if version.deleted_at is not None:
            raise RegistryError("deleted", f"An input of the merge, {version.digest}, was deleted meanwhile.")
    return found
