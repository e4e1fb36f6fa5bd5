"""The validate job: an adapter on its pinned base and on evaluation sets, and the report bound to all of them."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlmodel import Session

from lora_contract.validation import Validation
from lora_registry.context import Context
from lora_registry.db.dialect import insert_ignore
from lora_registry.db.tables import VersionEdge
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.repositories import store as catalog
from lora_registry.worker.handlers import report

CHILD = "lora_registry.worker.children.validate"


def handler(ctx: Context) -> Handler:
    """The handler of `validate` over an open context."""

    def run(job: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = job.step("inputs", lambda: _inputs(ctx, spec))
        found = job.child("measure", f"{CHILD}:measure", inputs)
        told: dict[str, Any] = job.transaction("report", lambda session: _report(session, job.job_id, spec, found))
        return told

    return run


def _inputs(ctx: Context, spec: dict[str, Any]) -> dict[str, Any]:
    """Digests and files of the version, its base and the sets."""
    with ctx.db.read() as session:
        subject = catalog.versions_by_id(session, [spec["version"]])[spec["version"]]
        base_id = subject.base_version_id
        assert base_id is not None, "only adapters are validated, and each pins its base"
        ids = [subject.id, base_id, *(version for _, version, _ in spec["sets"])]
        versions = catalog.versions_by_id(session, ids)
        stored = catalog.files_of(session, ids)
        files = {
            version: {file.path: [file.digest, file.size] for file in some if file.stored}
            for version, some in stored.items()
        }
        return {
            "version": subject.digest,
            "base": versions[base_id].digest,
            "precision": spec["precision"],
            "adapter_files": files[subject.id],
            "base_files": files[base_id],
            "sets": [
                {"role": role, "digest": versions[version].digest, "name": name, "files": files[version]}
                for role, version, name in spec["sets"]
            ],
        }


def _report(session: Session, job_id: str, spec: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The report, and the evaluation sets as part of the version's lineage."""
    made = msgspec.convert(found, Validation)
    for _, dataset, _ in spec["sets"]:
        edge = insert_ignore(session, VersionEdge)
        session.execute(edge.values(child_id=spec["version"], parent_id=dataset, relation="evaluated-on"))
    body = made.to_bytes().decode()
    return report.add(session, job_id, "validate", spec["version"], passed=made.passed, body=body)
