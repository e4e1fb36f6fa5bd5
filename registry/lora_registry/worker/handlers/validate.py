"""The validate job: an adapter on its pinned base and evaluation sets; the report is bound to all of them."""

from __future__ import annotations

from sqlmodel import Session

from lora_contract.validation import Validation
from lora_registry.context import Context
from lora_registry.db.dialect import insert_ignore
from lora_registry.db.tables import VersionEdge
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.jobs.specs import ValidateSpec
from lora_registry.repositories import store as catalog
from lora_registry.worker import weights
from lora_registry.worker.children import validate as child
from lora_registry.worker.handlers import report
from lora_registry.worker.handlers.stored import stored_files


def handler(ctx: Context) -> Handler[ValidateSpec]:
    """Return the handler of `validate`."""

    def run(job: JobContext, spec: ValidateSpec) -> report.ReportResult:
        data = job.step("inputs", _input, ctx, job, spec)
        found = job.child("measure", child.measure, data)
        return job.transaction("report", _report, job.job_id, spec, found)

    return run


def _input(ctx: Context, job: JobContext, spec: ValidateSpec) -> child.ValidateInput:
    """Load digests and files of the version, its base and the evaluation sets. Weights that are not stored are
    fetched."""
    with ctx.db.read() as session:
        subject = catalog.versions_by_id(session, [spec.version])[spec.version]
    base_id = subject.base_version_id
    assert base_id is not None, "only adapters are validated, and each pins its base"
    weights.ensure(ctx, job, [base_id])
    with ctx.db.read() as session:
        ids = [subject.id, base_id, *(each.version for each in spec.sets)]
        versions, files = catalog.versions_by_id(session, ids), stored_files(session, ids)
        return child.ValidateInput(
            version=subject.digest,
            base=versions[base_id].digest,
            precision=spec.precision,
            adapter_files=files[subject.id],
            base_files=files[base_id],
            sets=tuple(
                child.EvaluationSetInput(each.role, versions[each.version].digest, each.name, files[each.version])
                for each in spec.sets
            ),
        )


def _report(session: Session, job_id: str, spec: ValidateSpec, found: Validation) -> report.ReportResult:
    """Store the report, and the evaluation sets as part of the version's lineage."""
    for each in spec.sets:
        edge = insert_ignore(session, VersionEdge)
        session.execute(edge.values(child_id=spec.version, parent_id=each.version, relation="evaluated-on"))
    body = found.to_bytes().decode()
    return report.add(session, job_id, "validate", spec.version, passed=found.passed, body=body)
