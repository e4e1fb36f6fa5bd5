"""The inspect job: after every push the stored bytes are read once more and measured; a report says what was found."""

from __future__ import annotations

import json
from typing import Any

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_registry.bases import store as base_store
from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.repositories import store as catalog
from lora_registry.worker.handlers import report

CHILD = "lora_registry.worker.children.inspect"


def handler(ctx: Context) -> Handler:
    """The handler of `inspect` over an open context."""

    def run(job: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = job.step("inputs", lambda: _inputs(ctx, spec["version"]))
        found = job.child("examine", f"{CHILD}:examine", inputs)
        told: dict[str, Any] = job.transaction(
            "report", lambda session: _report(session, job.job_id, spec["version"], found)
        )
        return told

    return run


def _inputs(ctx: Context, version_id: int) -> dict[str, Any]:
    with ctx.db.read() as session:
        version = catalog.versions_by_id(session, [version_id])[version_id]
        repo = catalog.repositories_by_id(session, [version.repository_id])[version.repository_id]
        files = catalog.files_of(session, [version_id])[version_id]
        return {
            "kind": repo.kind,
            "files": {file.path: [file.digest, file.size] for file in files if file.stored},
        }


def _report(session: Session, job_id: str, version_id: int, found: dict[str, Any]) -> dict[str, Any]:
    fingerprint = base_store.fingerprint(session, version_id)
    if fingerprint is not None and found.get("rendered_template"):
        fingerprint.rendered_template = str(Digest.parse(found["rendered_template"]))
        session.add(fingerprint)
    passed = not any(finding["severity"] == "error" for finding in found["findings"])
    return report.add(session, job_id, "inspect", version_id, passed=passed, body=json.dumps(found, sort_keys=True))
