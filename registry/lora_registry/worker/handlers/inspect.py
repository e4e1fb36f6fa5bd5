"""The inspect job: after every push, read the stored bytes again, measure them, and store a report."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_registry.bases import store as base_store
from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.jobs.specs import InspectSpec
from lora_registry.keeping import damage
from lora_registry.repositories import store as catalog
from lora_registry.runtime.typed import encode
from lora_registry.worker.children import inspect as child
from lora_registry.worker.handlers import report
from lora_registry.worker.handlers.stored import stored_files


def handler(ctx: Context) -> Handler[InspectSpec]:
    """Return the handler of `inspect`."""

    def run(job: JobContext, spec: InspectSpec) -> report.ReportResult:
        data = job.step("inputs", _input, ctx, spec.version)
        found = job.child("examine", child.examine, data)
        if found.damaged:
            job.step("mark", _mark, ctx, found.damaged)
        return job.transaction("report", _report, job.job_id, spec.version, found)

    return run


def _input(ctx: Context, version_id: int) -> child.InspectInput:
    with ctx.db.read() as session:
        version = catalog.versions_by_id(session, [version_id])[version_id]
        repo = catalog.repositories_by_id(session, [version.repository_id])[version.repository_id]
        return child.InspectInput(repo.kind, stored_files(session, [version_id])[version_id])


def _mark(ctx: Context, blobs: Sequence[dict[str, str]]) -> int:
    return sum(damage.mark(ctx, damage.place_of(blob), blob["state"]) for blob in blobs)


def _report(session: Session, job_id: str, version_id: int, found: child.Inspection) -> report.ReportResult:
    fingerprint = base_store.fingerprint(session, version_id)
    if fingerprint is not None and found.rendered_template:
        fingerprint.rendered_template = str(Digest.parse(found.rendered_template))
        session.add(fingerprint)
    passed = not any(finding.severity == "error" for finding in found.findings)
    body = json.dumps(encode(found), sort_keys=True)
    return report.add(session, job_id, "inspect", version_id, passed=passed, body=body)
