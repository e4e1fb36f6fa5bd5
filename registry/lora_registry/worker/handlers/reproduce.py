"""The reproduce job: run a recipe again and compare the digests of the result with those of the version."""

from __future__ import annotations

import json

from lora_contract.recipe import MergeRecipe
from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.jobs.specs import ReproduceSpec
from lora_registry.repositories import store as catalog
from lora_registry.worker.handlers import derive, merge, report


def handler(ctx: Context) -> Handler[ReproduceSpec]:
    """Return the handler of `reproduce`. It commits only a report."""

    def run(job: JobContext, spec: ReproduceSpec) -> report.ReportResult:
        data = job.step("inputs", derive.gather, ctx, spec)
        if isinstance(data.recipe, MergeRecipe):
            derived, _ = merge.merge_files(job, data)
        else:
            derived = derive.derive_files(job, data).files
        found = {file.path: file.digest for file in derived}
        stored = job.step("stored", _stored, ctx, spec.version)
        files = [
            {"path": path, "expected": stored.get(path), "found": found.get(path)} for path in sorted({*stored, *found})
        ]
        body = json.dumps({"operation": data.recipe.operation, "files": files}, sort_keys=True)
        return job.transaction(
            "report", report.add, job.job_id, "reproduce", spec.version, passed=stored == found, body=body
        )

    return run


def _stored(ctx: Context, version_id: int) -> dict[str, str]:
    with ctx.db.read() as session:
        return {file.path: file.digest for file in catalog.files_of(session, [version_id])[version_id]}
