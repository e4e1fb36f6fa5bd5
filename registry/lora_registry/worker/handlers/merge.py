"""The merge job: plan, one step per file of the result, commit as a version with its lineage in one transaction."""

from __future__ import annotations

from typing import Any

import msgspec

from lora_kernels.merging import TensorStats, check_kept, merge_report
from lora_registry.context import Context
from lora_registry.jobs.engine.kinds import Handler, JobContext
from lora_registry.worker.handlers.derive import Files, Result, commit, gather

CHILD = "lora_registry.worker.children.merge"


def handler(ctx: Context) -> Handler:
    """The handler of `merge` over an open context."""

    def run(job: JobContext, spec: dict[str, Any]) -> dict[str, Any]:
        inputs = job.step("inputs", lambda: gather(ctx, spec))
        files, report = make(job, inputs)
        facts = {
            "operation": job.kind.name,
            "kept": report["kept"],
            "cosine": report["cosine"],
            "tensors": len(report["tensors"]),
        }
        made = Result("model", files, facts, report, {"kept": report["kept"]})
        result: dict[str, Any] = job.transaction("commit", lambda session: commit(ctx, session, job.job_id, spec, made))
        return result

    return run


def make(job: JobContext, inputs: dict[str, Any]) -> tuple[Files, dict[str, Any]]:
    """The files of the merged checkpoint, in the store, and the merge's report. Raises RegistryError `rejected`."""
    plan = job.child("plan", f"{CHILD}:plan", inputs)
    merged = []
    for number, file in enumerate(plan["files"]):
        job.progress(
            "merge",
            f"{file} ({number + 1} of {len(plan['files'])})",
            done=number,
            total=len(plan["files"]),
            unit="files",
        )
        merged.append(job.child(f"merge {file}", f"{CHILD}:shard", {**inputs, "file": file}))
    report = job.step("judge", _judge, merged, inputs["recipe"]["allow_loss"])
    side = job.child("side files", f"{CHILD}:side_files", inputs)
    return [*merged, *side["files"]], report


def _judge(merged: list[dict[str, Any]], allow_loss: bool) -> dict[str, Any]:
    """Refuse a merge that loses the adapter in rounding. Raises RegistryError `rejected`."""
    stats = [msgspec.convert(item, TensorStats) for file in merged for item in file["tensors"]]
    check_kept(stats, **({"min_kept": None} if allow_loss else {}))
    report: dict[str, Any] = msgspec.to_builtins(merge_report(stats, files=[], ignored=[]))
    return report
