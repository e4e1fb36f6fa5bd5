"""Sum the per-tile results of a launch for each job, on the device.

The merge of a model has a million tiles: copying their results to the host and summing them there took longer than the
merge itself (`docs/kernels.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot
from lora_kernels.ops.configs import TOTALS
from lora_kernels.ops.launch import on, options, upload


@triton.jit
def totals_kernel(
    partials: tl.tensor,
    starts: tl.tensor,
    totals: tl.tensor,
    FIELDS: tl.constexpr,
    MAXIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (job, field). partials: float (programs, FIELDS). starts: int64 (jobs + 1,), the first program of each
    job. totals: float64 (jobs, FIELDS). The order of the sums depends only on the number of programs. MAXIMUM: the
    field, without negative numbers, of which the maximum is taken."""
    i_job, i_field = tl.program_id(0), tl.program_id(1)
    end = tl.load(starts + i_job + 1)
    b_total = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(tl.load(starts + i_job), end, BLOCK):
        o_programs = first + tl.arange(0, BLOCK)
        b_part = tl.load(partials + (o_programs * FIELDS + i_field), o_programs < end, other=0.0).to(tl.float64)
        b_total = tl.where(i_field == MAXIMUM, tl.maximum(b_total, b_part), b_total + b_part)
    total = tl.where(i_field == MAXIMUM, tl.max(b_total), tl.sum(b_total))
    tl.store(totals + i_job * FIELDS + i_field, total)


def totals(partials: torch.Tensor, counts: Sequence[int], *, maximum: int) -> torch.Tensor:
    """Sum partials (programs, fields), float32 or float64, on their device, without waiting for it. Returns float64
    (jobs, fields). counts: number of programs of each job. maximum: see MAXIMUM."""
    fields = partials.shape[1]
    found = torch.zeros((len(counts), fields), dtype=torch.float64, device=partials.device)
    if counts:
        starts = upload([0, *accumulate(counts)], torch.int64, partials.device)
        with on(partials.device):
            totals_kernel[(len(counts), fields)](
                partials, starts, found, FIELDS=fields, MAXIMUM=maximum, BLOCK=TOTALS.columns, **options(TOTALS)
            )
    return found


def variants() -> list[aot.Variant]:
    """Variants for the results of a merge and of tensor statistics."""
    return [
        aot.Variant(
            name=f"totals of {fields} fields, {element}",
            kernel=totals_kernel,
            types={"partials": f"*{element}", "starts": "*i64", "totals": "*fp64"},
            constants={"FIELDS": fields, "MAXIMUM": maximum, "BLOCK": TOTALS.columns},
            config=TOTALS,
        )
        for fields, maximum, element in ((5, 3, "fp32"), (3, 1, "fp64"))
    ]
