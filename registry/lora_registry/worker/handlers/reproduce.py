"""The reproduce job: runs a recipe once more and compares the digests of the result with those of the version."""

from __future__ import annotations

import json

from lora_contract.recipe import MergeRecipe
from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.jobs.specs import ReproduceSpec
from lora_registry.repositories import store as catalog
from lora_registry.worker.handlers import derive, merge, report


def handler(ctx: Context) -> Handler[ReproduceSpec]:
    """The handler of `reproduce` over an open context. Nothing is committed but the report."""

    def run(job: JobContext, spec: ReproduceSpec) -> report.ReportMade:
        data = job.step("inputs", derive.gather, ctx, spec)
        made = merge.make(job, data)[0] if isinstance(data.recipe, MergeRecipe) else derive.make(job, data).files
        found = {file.path: file.digest for file in made}
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
