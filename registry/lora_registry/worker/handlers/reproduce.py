"""The reproduce job: run a recipe again and compare the digests of the result with those of the version.

If they are equal, the bytes replace those that the store has damaged or lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlmodel import Session

from lora_contract.recipe import MergeRecipe, ResizeBaseRecipe
from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.jobs.specs import ReproduceSpec
from lora_registry.keeping import damage
from lora_registry.keeping import store as kept
from lora_registry.repositories import store as catalog
from lora_registry.worker.children.files import ResultFile
from lora_registry.worker.handlers import derive, merge, report, vocabulary


def handler(ctx: Context) -> Handler[ReproduceSpec]:
    """Return the handler of `reproduce`. It commits only a report."""

    def run(job: JobContext, spec: ReproduceSpec) -> report.ReportResult:
        data = job.step("inputs", derive.gather, ctx, job, spec)
        if isinstance(data.recipe, MergeRecipe):
            derived, _, _ = merge.merge_files(job, data)
        elif isinstance(data.recipe, ResizeBaseRecipe):
            derived = vocabulary.resized_files(job, data).files
        else:
            derived = derive.derive_files(job, data).files
        found = {file.path: file.digest for file in derived}
        stored = job.step("stored", _stored, ctx, spec.version)
        files = [
            {"path": path, "expected": stored.get(path), "found": found.get(path)} for path in sorted({*stored, *found})
        ]
        body = json.dumps({"operation": data.recipe.operation, "files": files}, sort_keys=True)
        made = tuple(file for file in derived if file.life is not None)
        passed = stored == found
        result = job.transaction("report", _report, job.job_id, spec.version, made, passed=passed, body=body)
        job.step("discard", _discard, ctx, made)
        return result

    return run


def _report(
    session: Session, job_id: str, version_id: int, made: Sequence[ResultFile], *, passed: bool, body: str
) -> report.ReportResult:
    """Store the report, and repair the blobs of the version from bytes that have the same digests."""
    rows = kept.blobs(session, [file.digest for file in made])
    repaired = [file for file in made if file.digest in rows and rows[file.digest].state in ("damaged", "missing")]
    if passed:
        kept.record(session, {file.where: file.size for file in repaired})
        for file in repaired:
            damage.tell(session, file.digest, "ok")
    return report.add(session, job_id, "reproduce", version_id, passed=passed, body=body)


def _discard(ctx: Context, made: Sequence[ResultFile]) -> int:
    """Remove the objects that no row names; their addresses are this job's own. Return their number."""
    with ctx.db.read() as session:
        kept_places = kept.addresses(session, [file.digest for file in made])
    left = [file.where for file in made if kept_places.get(file.digest) != file.where]
    for where in left:
        ctx.blobs.delete(where)
    return len(left)


def _stored(ctx: Context, version_id: int) -> dict[str, str]:
    with ctx.db.read() as session:
        return {file.path: file.digest for file in catalog.files_of(session, [version_id])[version_id]}
