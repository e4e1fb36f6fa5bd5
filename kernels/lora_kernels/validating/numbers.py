"""Norms and ranks of the adapter's update, module by module, relative to the weights it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.validation import LayerResult
from lora_kernels.checkpoint.factors import FactorReader
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.merging.folder import plan_folder
from lora_kernels.merging.plan import MergePlan, TensorPlan
from lora_kernels.merging.tensor import TensorMerge
from lora_kernels.numeric.blas import one_thread
from lora_kernels.types.forms.replace import Replacement
from lora_kernels.validating.changes import DTYPES, TensorChange, measure

# Norm of the update relative to that of the weight: an update as large as the weight replaces it.
LARGE: Final = 1.0
# Likewise: float32 rounding of an unchanged weight, for types that recompute it.
NOTHING: Final = 2.0**-22


def numbers(base: Path, adapter: Path) -> LayerResult:
    """Measure each base tensor that a merge would change: norm of the change, its share of the weight's norm, stable
    rank (squared Frobenius over squared spectral norm), for low-rank products the share of the rank that adds nothing,
    and the output dtypes whose range it exceeds.

    Types without a merged form get a note: only the structure layer checks their values. An adapter that can be merged
    by its names and shapes but not by its values gets a warning.
    """
    empty = {"modules": [], "overflows": {name: [] for name in DTYPES}}
    try:
        plan = plan_folder(base, [(adapter, 1.0)])
        with one_thread(), FolderSource(base) as stored, FolderSource(adapter) as own:
            found = _measured(plan, stored, own)
    except RegistryError as error:
        if error.code == "unsupported":
            return LayerResult("passed", [Finding("no-merged-form", "note", error.detail)], empty)
        if error.code == "rejected":
            return LayerResult("passed", [Finding("change-refused", "warning", error.detail)], empty)
        raise
    rows = [_row(tensor, change) for tensor, change in found]
    overflows = {
        name: [tensor.name for tensor, change in found if change.finite and name in change.overflows] for name in DTYPES
    }
    return LayerResult("passed", _findings(rows), {"modules": rows, "overflows": overflows})


def _measured(plan: MergePlan, base: FolderSource, adapter: FolderSource) -> list[tuple[TensorPlan, TensorChange]]:
    touched = [tensor for shard in plan.shards for tensor in shard.tensors if tensor.deltas]
    readers = [FactorReader(adapter, known.file) for known in plan.adapters]
    return [
        (tensor, measure(TensorMerge(tensor, base, readers)))
        for tensor in sorted(touched, key=lambda tensor: (tensor.deltas[0].module, tensor.name))
    ]


def _row(tensor: TensorPlan, change: TensorChange) -> dict[str, Any]:
    """Facts of a tensor. None for values that are not finite or were not measured."""
    share = change.norm / change.weight if change.weight > 0 else None
    nothing = change.norm == 0 or (share is not None and share < NOTHING)
    finite, spectral = change.finite, change.spectral
    rank = None if spectral is None else 0.0 if nothing or not spectral else (change.norm / spectral) ** 2
    return {
        "module": tensor.deltas[0].module,
        "tensor": tensor.name,
        "replaced": any(isinstance(delta.update, Replacement) for delta in tensor.deltas),
        "rank": change.rank,
        "norm": (0.0 if nothing else _short(change.norm)) if finite else None,
        "share": (0.0 if nothing else _short(share)) if finite and share is not None else None,
        "stable_rank": _short(rank) if finite and rank is not None else None,
        "dead_pairs": change.dead_pairs,
    }


def _findings(rows: list[dict[str, Any]]) -> list[Finding]:
    findings = [
        Finding(
            "update-not-finite",
            "warning",
            f"Merged with the adapter, {row['tensor']} holds NaN or infinite values.",
            where=row["module"],
            hint="Check the base and the learning rate, or use an earlier checkpoint.",
        )
        for row in rows
        if row["norm"] is None
    ]
    findings += [
        Finding(
            "update-large",
            "warning",
            f"The update of {row['module']} has {row['share']:.1f} times the norm of the weight; "
            f"expected less than {LARGE:g}.",
            where=row["module"],
            hint="Check the learning rate and alpha.",
        )
        for row in rows
        # A bias is often near zero, so any change of it is relatively large.
        if row["share"] is not None and row["share"] > LARGE and not row["tensor"].endswith("bias")
    ]
    # Weight and bias count as one module: IA3 scales a bias of zeros, too.
    modules = {row["module"]: True for row in rows}
    for row in rows:
        modules[row["module"]] &= row["norm"] == 0
    dead = [module for module, nothing in modules.items() if nothing]
    if dead:
        more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
        findings.append(
            Finding(
                "module-dead",
                "warning",
                f"{len(dead)} of {len(modules)} modules change nothing: {', '.join(dead[:3])}{more}.",
                where=dead[0],
                hint="If they should be trained, train again; otherwise remove them from target_modules.",
            )
        )
    return findings


def _short(value: float) -> float:
    """Round to six significant digits."""
    return float(f"{value:.6g}")
