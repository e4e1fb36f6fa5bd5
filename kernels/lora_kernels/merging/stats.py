"""How much of an adapter survived the rounding of a merge, by tensor and in total.

kept = <realised update, dW> / <dW, dW>, where the realised update is what the stored weights really changed by; the
cosine is between the two. Both are 1 without rounding. Sums of squares are kept, so that parts can be added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.numeric.sums import UpdateSums

MIN_KEPT = 0.5


class TensorStats(msgspec.Struct, frozen=True):
    """One touched tensor. kind: `update` where something was added, `replace` where the tensor was exchanged whole.

    adapters: indices of the adapters that touched it. max_delta: largest absolute element of dW.
    """

    name: str
    kind: str
    adapters: tuple[int, ...]
    elements: int
    max_delta: float
    sums: UpdateSums


class MergeReport(msgspec.Struct, frozen=True):
    """What a merge did. kept / cosine are over all updates; replaced tensors do not count, lest they drown the rest.

    ignored: tensors of the adapters that change nothing and were left out knowingly.
    """

    kept: float | None
    cosine: float | None
    max_delta: float
    tensors: tuple[TensorStats, ...]
    files: tuple[FileRecord, ...]
    ignored: tuple[str, ...]


def total(tensors: Iterable[TensorStats]) -> UpdateSums:
    """The sums over all updates, the same in whatever order the tensors were done."""
    sums = [tensor.sums for tensor in tensors if tensor.kind == "update"]
    return UpdateSums(
        delta_delta=math.fsum(part.delta_delta for part in sums),
        realised_delta=math.fsum(part.realised_delta for part in sums),
        realised_realised=math.fsum(part.realised_realised for part in sums),
    )


def merge_report(
    tensors: Sequence[TensorStats], *, files: Sequence[FileRecord] = (), ignored: Sequence[str] = ()
) -> MergeReport:
    """Put the parts of a merge together, sorted by tensor name and by path."""
    sums = total(tensors)
    return MergeReport(
        kept=sums.kept,
        cosine=sums.cosine,
        max_delta=max((tensor.max_delta for tensor in tensors if tensor.kind == "update"), default=0.0),
        tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)),
        files=tuple(sorted(files, key=lambda file: file.path)),
        ignored=tuple(ignored),
    )


def check_kept(tensors: Sequence[TensorStats], *, min_kept: float | None = MIN_KEPT) -> None:
    """Refuse a merge that lost the adapter. min_kept: least share of the update to survive; None to allow any loss.

    An adapter without any effect (zero weight, zero B) has nothing to lose and passes. Raises RegistryError `rejected`.
    """
    sums = total(tensors)
    if min_kept is None or sums.kept is None or sums.kept >= min_kept:
        return
    cosine = "" if sums.cosine is None else f", cosine {sums.cosine:.2f}"
    raise RegistryError(
        "rejected",
        f"Only {sums.kept:.0%} of the adapter survived the rounding of the merged weights (kept {sums.kept:.3f}"
        f"{cosine}; at least {min_kept:.0%} is expected): the update is so small beside the weights that most of it is "
        "less than half a step of the output's number format.",
        hint="Merge into a finer dtype (float32, or bfloat16 in place of NF4), round stochastically, serve the "
        "adapter unmerged, or allow the loss expressly.",
        kept=sums.kept,
        cosine=sums.cosine,
        min_kept=min_kept,
    )
