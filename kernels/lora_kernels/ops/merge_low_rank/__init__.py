"""W_new = round_once(float32(W) + sum_i scale_i * B_i A_i): low-rank updates merged in one read and one write of W.

Products and sums are float32: each adapter's B A, its scale, the sum over adapters in the given order, the sum with W,
then one rounding (to nearest, ties to even) to the output's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lora_kernels.ops.dispatch import Backend, choose
from lora_kernels.ops.low_rank import LowRank, check_adapters, check_output, check_weight
from lora_kernels.ops.merge_low_rank.stats import MergeStats

__all__ = ["MergeJob", "MergeStats", "Merged", "merge_low_rank", "merge_low_rank_grouped"]


@dataclass(frozen=True, slots=True)
class MergeJob:
    """One matrix of a grouped merge. name: for errors. For the rest see `merge_low_rank`."""

    w: torch.Tensor
    adapters: Sequence[LowRank]
    out: torch.Tensor | None = None
    name: str = "W"


class Merged(NamedTuple):
    """weight: (o, i), of the output's dtype. stats: None unless requested."""

    weight: torch.Tensor
    stats: MergeStats | None


def merge_low_rank(
    w: torch.Tensor,
    adapters: Sequence[LowRank],
    *,
    out: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    stats: bool = False,
    backend: Backend | None = None,
) -> Merged:
    """Merge any number of adapters, of any ranks, into one matrix.

    Raises RegistryError `invalid-request` for shapes, dtypes and devices that do not match, `unsupported` if Triton is
    requested and cannot run.

    Args:
        w: (o, i), bf16, fp16 or fp32, any strides.
        out: W itself to merge in place; None to allocate it in the layout of W.
        dtype: of the output; None for that of `out`, or of W.
        stats: return statistics of the update and its rounding.
        backend: None to choose it by W's device.
    """
    return merge_low_rank_grouped([MergeJob(w, adapters, out)], dtype=dtype, stats=stats, backend=backend)[0]


def merge_low_rank_grouped(
    jobs: Sequence[MergeJob],
    *,
    dtype: torch.dtype | None = None,
    stats: bool = False,
    backend: Backend | None = None,
) -> list[Merged]:
    """Merge into many matrices, with one launch for all of the same dtypes. Results are in the order of the jobs.

    Outputs must not overlap. Raises as `merge_low_rank`, before anything is written.
    """
    for job in jobs:
        check_weight(job.w, name=job.name)
        check_output(job.w, job.out, dtype, name=job.name)
        check_adapters(job.w, job.adapters, name=job.name)
    outs = [torch.empty_like(job.w, dtype=dtype) if job.out is None else job.out for job in jobs]
    results: list[Merged | None] = [None] * len(jobs)
    for indices in _launch_groups(jobs, outs):
        chosen = [jobs[index] for index in indices]
        merge = _implementation(choose(chosen[0].w.device, backend))
        merged = merge([(job.w, job.adapters, outs[i]) for i, job in zip(indices, chosen, strict=True)], stats=stats)
        for index, part in zip(indices, merged, strict=True):
            results[index] = Merged(outs[index], part)
    return [result for result in results if result is not None]


def _implementation(backend: Backend) -> Callable[..., list[MergeStats] | list[None]]:
    if backend == "triton":
        from lora_kernels.ops.merge_low_rank import kernel

        return kernel.merge
    from lora_kernels.ops.merge_low_rank import in_torch as reference

    return reference.merge


def _launch_groups(jobs: Sequence[MergeJob], outs: Sequence[torch.Tensor]) -> list[list[int]]:
    """Groups of indices of the jobs that can share a launch."""
    groups: dict[object, list[int]] = {}
    for index, (job, out) in enumerate(zip(jobs, outs, strict=True)):
        factors = {factor.dtype for adapter in job.adapters for factor in (adapter.a, adapter.b)}
        factor = factors.pop() if len(factors) == 1 else torch.float32
        groups.setdefault((job.w.device, job.w.dtype, out.dtype, factor), []).append(index)
    return list(groups.values())
