"""The passes that count the magnitudes of deltas, for an aligned matrix of 16 bits: a warp walks along 16 rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot
from lora_kernels.ops.configs import COUNT_ROWS
from lora_kernels.ops.launch import ELEMENTS, on, options
from lora_kernels.ops.single import PLAIN, ROWS, TYPES, WIDTH, Single, constants, product, tile_mask
from lora_kernels.ops.ties_merge.limits import BINS, Search
from lora_kernels.ops.ties_merge.tally import magnitudes, tally


@triton.jit(do_not_specialize=PLAIN)
def count_rows_kernel(
    w: tl.tensor,  # noqa: ARG001 - the arguments of all kernels on a single matrix
    out: tl.tensor,  # noqa: ARG001
    a: tl.tensor,
    b: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    column_eighths: tl.tensor,
    w_eighths: tl.tensor,  # noqa: ARG001
    out_eighths: tl.tensor,  # noqa: ARG001
    low: tl.tensor,
    shift: tl.tensor,
    done: tl.tensor,
    reached: tl.tensor,
    counts: tl.tensor,
    ELEMENT: tl.constexpr,  # noqa: ARG001
    OUTPUT: tl.constexpr,  # noqa: ARG001
    FACTOR: tl.constexpr,
    RANK: tl.constexpr,
    COUNT: tl.constexpr,
    BINS: tl.constexpr,
    STEPS: tl.constexpr,
) -> None:
    """Program (block, segment, adapter) of 16 rows and 32 * STEPS columns. low to counts: as in `kernel.count_kernel`.
    For the rest see `single.Single`."""
    i_block, i_segment, i_adapter = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if tl.load(done + i_adapter) == 0:
        low_bits, bits_per_bin = tl.load(low + i_adapter).to(tl.int32), tl.load(shift + i_adapter).to(tl.int32)
        scale = tl.load(scales + i_adapter)
        own = counts + i_adapter.to(tl.int64) * BINS
        o_rows = i_block * 16 + tl.arange(0, 16)
        first, end = i_segment * STEPS, tl.minimum((i_segment + 1) * STEPS, tl.cdiv(column_eighths, 4))
        # Groups that lie in the matrix as a whole need no mask.
        whole = tl.where((i_block + 1) * 16 <= rows, tl.maximum(tl.minimum(end, column_eighths // 4), first), first)
        b_below = tl.zeros((16, 32), dtype=tl.int32)
        for i_group in range(first, whole):
            b_bits = magnitudes(product(a, b, i_block, i_group, i_adapter, COUNT, FACTOR, RANK) * scale)
            b_below += tally(b_bits, low_bits, bits_per_bin, own, BINS)
        for i_group in range(whole, end):
            b_bits = magnitudes(product(a, b, i_block, i_group, i_adapter, COUNT, FACTOR, RANK) * scale)
            b_bits = tl.where(tile_mask(o_rows, i_group, rows, column_eighths), b_bits, -1)
            b_below += tally(b_bits, low_bits, bits_per_bin, own, BINS)
        at_least = tl.maximum(end - first, 0) * 512 - tl.sum(b_below)
        tl.atomic_add(reached + i_adapter, at_least.to(tl.int64), sem="relaxed")


def count(given: Single, search: Search, reached: torch.Tensor, counts: torch.Tensor) -> None:
    """Add to reached and counts: see `limits.advance`."""
    grid = (given.blocks, -(-given.groups // _steps()), len(reached))
    with on(given.w.device):
        count_rows_kernel[grid](
            *given.arguments(), search.low, search.shift, search.done, reached, counts,
            **given.constants(), **_form(len(reached)), **options(COUNT_ROWS),
        )  # fmt: skip


def _steps() -> int:
    return COUNT_ROWS.columns // WIDTH


def _form(count: int) -> dict[str, Any]:
    return {"COUNT": count, "BINS": BINS, "STEPS": _steps()}


def variants() -> list[aot.Variant]:
    """Several ranks."""
    search = {"low": "*i64", "shift": "*i64", "done": "*i64", "reached": "*i64", "counts": "*i32"}
    bf16 = torch.bfloat16
    return [
        aot.Variant(
            name=f"ties rows count rank {rank}, {ELEMENTS[bf16]}",
            kernel=count_rows_kernel,
            types=TYPES | search,
            constants=constants(bf16, bf16, bf16, rank=rank) | _form(4),
            config=COUNT_ROWS,
            steps=_steps(),
            elements=ROWS * WIDTH,
            offset_bits=None,
        )
        for rank in (16, 64)
    ]
