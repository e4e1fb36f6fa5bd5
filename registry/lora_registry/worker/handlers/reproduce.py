"""The reproduce job: a recipe run once more, and the digests of what comes out against those of the version."""

from __future__ import annotations

import json
from typing import Any

from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.repositories import store as catalog
from lora_registry.worker.handlers import derive, merge, report


def handler(ctx: Context) -> Handler:
    """The handler of `reproduce` over an open context. Nothing is committed but the report."""

    def run(job: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
        inputs = job.step("inputs", lambda: derive.gather(ctx, spec))
        operation = inputs["recipe"]["operation"]
        made = merge.make(job, inputs)[0] if operation == "merge" else derive.make(job, operation, inputs)["files"]
        found = {file["path"]: file["digest"] for file in made}
        stored: dict[str, str] = job.step("stored", lambda: _stored(ctx, spec["version"]))
        files = [
            {"path": path, "expected": stored.get(path), "found": found.get(path)} for path in sorted({*stored, *found})
        ]
        body = json.dumps({"operation": operation, "files": files}, sort_keys=True)
        told: dict[str, Any] = job.transaction(
            "report",
            lambda session: report.add(
                session, job.job_id, "reproduce", spec["version"], passed=stored == found, body=body
            ),
        )
        return told

    return run


def _stored(ctx: Context, version_id: int) -> dict[str, str]:
    with ctx.db.read() as session:
        return {file.path: file.digest for file in catalog.files_of(session, [version_id])[version_id]}
