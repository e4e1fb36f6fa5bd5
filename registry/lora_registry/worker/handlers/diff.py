"""The diff job: two adapters module by module. Its report is on the later of both."""

from __future__ import annotations

import json
from typing import Any

from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.repositories import store as catalog
from lora_registry.worker.handlers import report

CHILD = "lora_registry.worker.children.diff"


def handler(ctx: Context) -> Handler:
    """The handler of `diff` over an open context."""

    def run(job: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = job.step("inputs", lambda: _inputs(ctx, spec["before"], spec["version"]))
        found = job.child("compare", f"{CHILD}:compare", inputs)
        body = json.dumps({"other": inputs["other"], **found}, sort_keys=True)
        told: dict[str, Any] = job.transaction(
            "report",
            lambda session: report.add(session, job.job_id, "diff", spec["version"], passed=True, body=body),
        )
        return told

    return run


def _inputs(ctx: Context, before: int, after: int) -> dict[str, Any]:
    with ctx.db.read() as session:
        files = catalog.files_of(session, [before, after])
        table = {
            version: {file.path: [file.digest, file.size] for file in files[version] if file.stored}
            for version in (before, after)
        }
        other = catalog.versions_by_id(session, [before])[before].digest
        return {"before": table[before], "after": table[after], "other": other}
