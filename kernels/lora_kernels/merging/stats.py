"""How much of an adapter survived the rounding of a merge, by tensor and in total.

kept = <realised update, dW> / <dW, dW>; the realised update is the actual change of the stored weights, and the cosine
is between it and dW. Both are 1 without rounding. The sums are stored, so that they can be added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.devices.choice import Execution
from lora_kernels.merging.plan import TensorPlan
from lora_kernels.numeric.sums import UpdateSums

MIN_KEPT = 0.5


class TensorStats(msgspec.Struct, frozen=True):
    """Statistics of one touched tensor.

    kind: `update`, or `replace` if an adapter replaced the whole tensor. adapters: indices of the adapters that touched
    it. max_delta: largest absolute element of dW.
    """

    name: str
    kind: str
    adapters: tuple[int, ...]
    elements: int
    max_delta: float
    sums: UpdateSums


class MergeReport(msgspec.Struct, frozen=True):
    """Report of a merge.

    kept, cosine: over all updates; replaced tensors do not count, since they would dominate. ignored: names of adapter
    tensors that change nothing. dequantized: what became of the base's quantized weights; None if it has none.
    execution: the device that computed it.
    """

    kept: float | None
    cosine: float | None
    max_delta: float
    tensors: tuple[TensorStats, ...]
    files: tuple[FileRecord, ...]
    ignored: tuple[str, ...]
    dequantized: str | None = None
    execution: Execution = Execution()


def tensor_stats(tensor: TensorPlan, sums: UpdateSums, max_delta: float, *, replaces: bool) -> TensorStats:
    """Statistics of a planned tensor. sums, max_delta: over all of its rows."""
    return TensorStats(
        name=tensor.name,
        kind="replace" if replaces else "update",
        adapters=tuple(delta.adapter for delta in tensor.deltas),
        elements=math.prod(tensor.shape),
        max_delta=max_delta,
        sums=sums,
    )


def total(tensors: Iterable[TensorStats]) -> UpdateSums:
    """The sums over all updates, independent of the order of the tensors."""
    sums = [tensor.sums for tensor in tensors if tensor.kind == "update"]
    return UpdateSums(
        delta_delta=math.fsum(part.delta_delta for part in sums),
        realised_delta=math.fsum(part.realised_delta for part in sums),
        realised_realised=math.fsum(part.realised_realised for part in sums),
    )


def merge_report(
    tensors: Sequence[TensorStats],
    *,
    files: Sequence[FileRecord] = (),
    ignored: Sequence[str] = (),
    dequantized: str | None = None,
    execution: Execution | None = None,
) -> MergeReport:
    """Build the report of a merge, with tensors sorted by name and files by path."""
    sums = total(tensors)
    return MergeReport(
        kept=sums.kept,
        cosine=sums.cosine,
        max_delta=max((tensor.max_delta for tensor in tensors if tensor.kind == "update"), default=0.0),
        tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)),
        files=tuple(sorted(files, key=lambda file: file.path)),
        ignored=tuple(ignored),
        dequantized=dequantized,
        execution=execution or Execution(),
    )


def check_kept(tensors: Sequence[TensorStats], *, min_kept: float | None = MIN_KEPT) -> None:
    """Refuse a merge whose rounding discards too much of the update.

    min_kept: smallest share that must survive; None to allow any loss. An adapter without effect (zero weight or B)
    passes. Raises RegistryError `rejected`.
    """
    sums = total(tensors)
    if min_kept is None or sums.kept is None or sums.kept >= min_kept:
        return
    cosine = "" if sums.cosine is None else f", cosine {sums.cosine:.2f}"
    raise RegistryError(
        "rejected",
        f"Only {sums.kept:.0%} of the adapter survived the rounding of the merged weights (kept {sums.kept:.3f}"
        f"{cosine}; the minimum is {min_kept:.0%}): relative to the weights, most of the update is less than half a "
        "step of the output dtype.",
        hint="Merge into a finer dtype (float32, or bfloat16 instead of NF4), use stochastic rounding, serve the "
        "adapter unmerged, or allow the loss explicitly.",
        kept=sums.kept,
        cosine=sums.cosine,
        min_kept=min_kept,
    )
