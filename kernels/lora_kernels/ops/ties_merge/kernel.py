"""TIES: the k-th largest magnitude of each delta by a radix search that recomputes the deltas, then `sparse`.

The 31 bits of a magnitude are found as three digits, highest first: a histogram of the digit over all elements with the
digits found so far, then the bin with the k-th largest. Two digits would need 65,536 bins, which do not fit into the
registers or shared memory of a program: each element would be an atomic addition to global memory. 2,048 fit, and a
program sums them over many tiles. The sums are integers, so their order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import RADIX, RADIX_PROGRAMS, LaunchConfig
from lora_kernels.ops.launch import TABLE_TYPES, low_rank_constants, on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.sparse import MajoritySign
from lora_kernels.ops.sparse import kernel as sparse
from lora_kernels.ops.sparse.kernel import magnitude_bits
from lora_kernels.ops.tiles import adapter_delta, job_of, tile_of

# (width in bits, position of the lowest bit) of each digit.
DIGITS: Final = ((11, 20), (10, 10), (10, 0))
KEEP_ALL: Final = 0
KEEP_NONE: Final = 2**31


@triton.jit
def digit_counts_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    found: tl.tensor,
    counts: tl.tensor,
    programs: tl.tensor,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    DIGIT: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """Program (chunk, adapter): every n-th tile of one adapter's delta, n the number of chunks. found: int64
    (adapters,), the higher digits. counts: int64 (adapters, 2^DIGIT), added to. programs: number of tiles. For the rest
    see `tables.Tables`, of one job."""
    i_adapter = tl.program_id(1).to(tl.int64)
    above = tl.load(found + i_adapter).to(tl.uint32)
    scale = tl.load(scales + i_adapter)
    b_counts = tl.zeros((1 << DIGIT,), dtype=tl.int32)
    for i_tile in range(tl.program_id(0), programs, tl.num_programs(0)):
        job = job_of(jobs, owners, i_tile)
        o_rows, o_columns, rows, columns = tile_of(job, i_tile, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
        m_rows, m_columns = o_rows < rows, o_columns < columns
        b_delta = adapter_delta(
            factors, i_adapter, o_rows, o_columns, m_rows, m_columns, columns,
            FACTOR, NATIVE, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
        )  # fmt: skip
        b_bits = magnitude_bits(b_delta * scale)
        m_same = (m_rows[:, None] & m_columns[None, :]) & (((b_bits >> SHIFT) >> DIGIT) == above)
        b_digit = ((b_bits >> SHIFT) & ((1 << DIGIT) - 1)).to(tl.int32)
        size: tl.constexpr = BLOCK_ROWS * BLOCK_COLUMNS
        b_counts += tl.histogram(tl.reshape(b_digit, (size,)), 1 << DIGIT, mask=tl.reshape(m_same, (size,)))
    p_counts = counts + (i_adapter << DIGIT) + tl.arange(0, 1 << DIGIT)
    tl.atomic_add(p_counts, b_counts.to(tl.int64), mask=b_counts > 0, sem="relaxed")


def limits(
    w: torch.Tensor, adapters: Sequence[LowRank], density: float, *, config: LaunchConfig = RADIX
) -> torch.Tensor:
    """The smallest magnitude that each delta keeps, as the bits of a float32, int64 (adapters,). w: for its shape and
    layout. adapters: none of rank 0."""
    keep = int(density * w.numel())
    if keep in (0, w.numel()):
        return torch.full((len(adapters),), KEEP_NONE if keep == 0 else KEEP_ALL, device=w.device)
    table = tables.build([(w, w)], [adapters], rows=config.rows, columns=config.columns)
    found = torch.zeros(len(adapters), dtype=torch.int64, device=w.device)
    left = torch.full_like(found, keep)
    for width, shift in DIGITS:
        counts = torch.zeros((len(adapters), 1 << width), dtype=torch.int64, device=w.device)
        with on(w.device):
            digit_counts_kernel[(min(table.programs, RADIX_PROGRAMS), len(adapters))](
                table.jobs, table.factors, table.scales, table.owners, found, counts, table.programs,
                **low_rank_constants(table.factor_dtype, config, aligned=table.aligned),
                **options(config.suited(factor=table.factor_dtype)),
                DIGIT=width, SHIFT=shift,
            )  # fmt: skip
        # The number of elements with this digit or a higher one; the digit is the highest with enough of them.
        enough = counts.flip(1).cumsum(1).flip(1)
        digit = (enough >= left[:, None]).sum(1) - 1
        higher = (enough - counts).gather(1, digit[:, None])[:, 0]
        left = left - higher
        found = (found << width) | digit
    return found


def merge(
    w: torch.Tensor,
    adapters: Sequence[LowRank],
    out: torch.Tensor,
    *,
    weights: Sequence[float],
    density: float,
    method: MajoritySign,
) -> None:
    """Merge checked arguments into `out`."""
    present = [index for index, adapter in enumerate(adapters) if adapter.rank]
    chosen = [adapters[index] for index in present]
    sparse.merge(
        w, chosen, out,
        weights=[weights[index] for index in present], limits=limits(w, chosen, density), keys=None, method=method,
    )  # fmt: skip


def variants() -> list[aot.Variant]:
    """All digits and layouts, for bf16 and float32 factors; and the merge itself."""
    counting = [
        aot.Variant(
            name=f"ties digit at {shift}, factors {'bf16' if factor == torch.bfloat16 else 'fp32'}, "
            f"{'aligned' if aligned else 'any'}",
            kernel=digit_counts_kernel,
            types=TABLE_TYPES | {"found": "*i64", "counts": "*i64", "programs": "i32"},
            constants=low_rank_constants(factor, RADIX, aligned=aligned) | {"DIGIT": width, "SHIFT": shift},
            config=RADIX.suited(factor=factor),
        )
        for width, shift in DIGITS
        for factor, aligned in ((torch.bfloat16, True), (torch.float32, False))
    ]
    return counting + sparse.variants(random=False)
