"""The merge job: plan, merge the output files side by side, a step each, commit the version with its lineage in one
transaction."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from lora_contract.errors import RegistryError
from lora_contract.recipe import MergeRecipe
from lora_kernels.merging import MergeReport, check_kept, merge_report
from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext, Part
from lora_registry.jobs.specs import DeriveSpec
from lora_registry.worker.children import merge as child
from lora_registry.worker.children.derive import DeriveInput, report_body
from lora_registry.worker.children.files import ResultFile
from lora_registry.worker.handlers.derive import Committed, Result, commit, gather

# Files on one GPU at a time: each process holds a context and two waves in its memory.
_ON_A_GPU: Final = 4


def handler(ctx: Context) -> Handler[DeriveSpec]:
    """Return the handler of `merge`."""

    def run(job: JobContext, spec: DeriveSpec) -> Committed:
        files, report, architecture = merge_files(job, job.step("inputs", gather, ctx, job, spec))
        facts = {
            "operation": job.kind.name,
            "kept": report.kept,
            "cosine": report.cosine,
            "tensors": len(report.tensors),
            **({"architecture": architecture} if architecture is not None else {}),
            **({"dequantized": report.dequantized} if report.dequantized is not None else {}),
        }
        result = Result("model", files, facts, report_body(report), kept=report.kept)
        return job.transaction("commit", commit, ctx, job.job_id, spec, result)

    return run


def merge_files(job: JobContext, data: DeriveInput) -> tuple[tuple[ResultFile, ...], MergeReport, str | None]:
    """Merge, and store the files of the checkpoint. Also returns the architecture, if an adapter brings another one.

    Raises RegistryError `rejected`.
    """
    if not isinstance(data.recipe, MergeRecipe):
        raise RegistryError("internal", f"A recipe of {data.recipe.operation} is not a merge.")
    planned = job.child("plan", child.plan, child.MergeInput(data.recipe, data.base, data.inputs))
    device = data.recipe.device
    shards = [
        Part(weights.file, child.ShardInput(weights, data.base, data.inputs, device), weights.size)
        for weights in planned.weights
    ]
    at_once = len(os.sched_getaffinity(0)) if device == "cpu" else _ON_A_GPU
    merged = job.children("merge", child.merge_shard, shards, at_once=at_once)
    report = job.step("judge", _check_kept, merged, planned.ignored, data.recipe.allow_loss)
    report = msgspec.structs.replace(report, dequantized=planned.dequantized)
    return (*merged, *planned.side_files), report, planned.architecture


def _check_kept(merged: list[child.MergedFile], ignored: tuple[str, ...], allow_loss: bool) -> MergeReport:
    """Raise RegistryError `rejected` if the adapter is lost in rounding."""
    stats = [tensor for file in merged for tensor in file.tensors]
    check_kept(stats, **({"min_kept": None} if allow_loss else {}))
    return merge_report(stats, files=[], ignored=ignored, execution=merged[0].execution if merged else None)
