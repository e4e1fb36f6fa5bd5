"""The diff job: compare two adapters module by module. The report is stored on the later one."""

from __future__ import annotations

import json

from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.jobs.specs import DiffSpec
from lora_registry.repositories import store as catalog
from lora_registry.runtime.typed import encode
from lora_registry.worker.children import diff as child
from lora_registry.worker.handlers import report
from lora_registry.worker.handlers.stored import stored_files


def handler(ctx: Context) -> Handler[DiffSpec]:
    """Return the handler of `diff`."""

    def run(job: JobContext, spec: DiffSpec) -> report.ReportResult:
        data = job.step("inputs", _input, ctx, spec)
        found = job.child("compare", child.compare, data)
        body = json.dumps({"other": data.other, **encode(found)}, sort_keys=True)
        return job.transaction("report", report.add, job.job_id, "diff", spec.version, passed=True, body=body)

    return run


def _input(ctx: Context, spec: DiffSpec) -> child.DiffInput:
    with ctx.db.read() as session:
        files = stored_files(session, [spec.before, spec.version])
        other = catalog.versions_by_id(session, [spec.before])[spec.before].digest
        return child.DiffInput(files[spec.before], files[spec.version], other)
