"""The base resize job: compute the files, check them like those of a pushed base, commit the base with its lineage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lora_contract.findings import refuse
from lora_contract.manifest import FileEntry
from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.jobs.specs import DeriveSpec
from lora_registry.push import check
from lora_registry.worker.children import vocabulary as child
from lora_registry.worker.children.derive import DerivedFiles, DeriveInput
from lora_registry.worker.children.files import ResultFile
from lora_registry.worker.handlers.derive import Committed, Result, commit, gather


class CheckedBase(msgspec.Struct, frozen=True):
    facts: dict[str, Any]
    fingerprint: str
    config: dict[str, str]


def handler(ctx: Context) -> Handler[DeriveSpec]:
    """Return the handler of `resize-base`."""

    def run(job: JobContext, spec: DeriveSpec) -> Committed:
        derived = resized_files(job, job.step("inputs", gather, ctx, job, spec))
        found = job.step("check", _check, ctx, derived.files)
        result = Result(
            "base",
            derived.files,
            found.facts,
            derived.report,
            fingerprint=found.fingerprint.encode(),
            config=found.config,
        )
        return job.transaction("commit", commit, ctx, job.job_id, spec, result)

    return run


def resized_files(job: JobContext, data: DeriveInput) -> DerivedFiles:
    """Run a child that computes the resized base and stores its files."""
    return job.child(data.recipe.operation, child.resize, data)


def _check(ctx: Context, files: Sequence[ResultFile]) -> CheckedBase:
    """Check the base like a pushed one. Raises `rejected`."""
    outcome = check.base(ctx, tuple(FileEntry(file.path, file.size, file.where) for file in files))
    refuse(outcome.findings)
    return CheckedBase(outcome.facts or {}, outcome.fingerprint or "", outcome.config)
