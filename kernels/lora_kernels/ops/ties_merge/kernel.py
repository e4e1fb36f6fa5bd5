"""TIES: the smallest kept magnitude of each delta by passes that count, then the vote of `sparse`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import COUNT, COUNT_PROGRAMS
from lora_kernels.ops.launch import TABLE_TYPES, low_rank_constants, on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.single import Single, single
from lora_kernels.ops.sparse import MajoritySign, aligned
from lora_kernels.ops.sparse import kernel as sparse
from lora_kernels.ops.ties_merge import aligned as on_rows
from lora_kernels.ops.ties_merge.limits import BINS, KEEP_ALL, KEEP_NONE, MAX_PASSES, Search, advance, start
from lora_kernels.ops.ties_merge.tally import magnitudes, tally
from lora_kernels.ops.tiles import adapter_delta, job_of, tile_of


@triton.jit
def count_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    low: tl.tensor,
    shift: tl.tensor,
    done: tl.tensor,
    reached: tl.tensor,
    counts: tl.tensor,
    programs: tl.tensor,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """Program (chunk, adapter): every n-th tile of one adapter's delta, n the number of chunks. low, shift, done:
    `limits.Search`. reached: int64 (adapters,), counts: int64 (adapters, BINS), see `limits.advance`; added to.
    programs: number of tiles. For the rest see `tables.Tables`, of one job."""
    i_adapter = tl.program_id(1).to(tl.int64)
    if tl.load(done + i_adapter) == 0:
        low_bits, bits_per_bin = tl.load(low + i_adapter).to(tl.int32), tl.load(shift + i_adapter).to(tl.int32)
        scale = tl.load(scales + i_adapter)
        b_reached = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.int32)
        for i_tile in range(tl.program_id(0), programs, tl.num_programs(0)):
            job = job_of(jobs, owners, i_tile)
            o_rows, o_columns, rows, columns = tile_of(job, i_tile, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
            m_rows, m_columns = o_rows < rows, o_columns < columns
            b_delta = adapter_delta(
                factors, i_adapter, o_rows, o_columns, m_rows, m_columns, columns,
                FACTOR, NATIVE, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
            )  # fmt: skip
            b_bits = tl.where(m_rows[:, None] & m_columns[None, :], magnitudes(b_delta * scale), -1)
            b_reached += 1 - tally(b_bits, low_bits, bits_per_bin, counts + i_adapter * BINS, BINS)
        tl.atomic_add(reached + i_adapter, tl.sum(b_reached).to(tl.int64), sem="relaxed")


def limits(
    w: torch.Tensor, adapters: Sequence[LowRank], density: float, *, laid_out: Single | None = None
) -> torch.Tensor:
    """The smallest magnitude that each delta keeps, as the bits of a float32, int64 (adapters,).

    Args:
        w: for its shape and layout.
        adapters: none of rank 0.
        laid_out: the same for kernels on rows; None if the deltas are merged tile by tile. Both compute deltas alike,
            but not to the last bit.
    """
    keep = int(density * w.numel())
    if keep in (0, w.numel()) or not adapters:
        return torch.full((len(adapters),), KEEP_NONE if keep == 0 else KEEP_ALL, device=w.device)
    search = start(w.shape, adapters, keep)
    count = _count(w, adapters) if laid_out is None else partial(on_rows.count, laid_out)
    for _ in range(MAX_PASSES):
        reached = torch.zeros(len(adapters), dtype=torch.int64, device=w.device)
        # Of a matrix laid out for rows, which has fewer elements than that, 32 bits hold any count.
        bits = torch.int64 if laid_out is None else torch.int32
        counts = torch.zeros((len(adapters), BINS), dtype=bits, device=w.device)
        count(search, reached, counts)
        search = advance(search, keep, reached, counts)
    return search.low


def _count(w: torch.Tensor, adapters: Sequence[LowRank]) -> Callable[[Search, torch.Tensor, torch.Tensor], None]:
    """As `aligned.count`, tile by tile."""
    table = tables.build([(w, w)], [adapters], rows=COUNT.rows, columns=COUNT.columns)
    constants = low_rank_constants(table.factor_dtype, COUNT, aligned=table.aligned) | {"BINS": BINS}

    def count(search: Search, reached: torch.Tensor, counts: torch.Tensor) -> None:
        with on(w.device):
            count_kernel[(min(table.programs, COUNT_PROGRAMS), len(adapters))](
                table.jobs, table.factors, table.scales, table.owners,
                search.low, search.shift, search.done, reached, counts, table.programs,
                **constants, **options(COUNT.suited(factor=table.factor_dtype)),
            )  # fmt: skip

    return count


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
    laid_out = single(w, out, chosen, most=aligned.MOST_ADAPTERS)
    recipe: dict[str, Any] = {
        "weights": [weights[index] for index in present],
        "limits": limits(w, chosen, density, laid_out=laid_out),
        "keys": None,
        "method": method,
    }
    if laid_out is not None and int(density * w.numel()):
        aligned.merge(laid_out, **recipe)
    else:
        sparse.merge(w, chosen, out, **recipe)


def variants() -> list[aot.Variant]:
    """The passes that count, for bf16 and float32 factors; and the merge itself."""
    search = {"low": "*i64", "shift": "*i64", "done": "*i64", "reached": "*i64", "counts": "*i64", "programs": "i32"}
    counting = [
        aot.Variant(
            name=f"ties count, factors {'bf16' if factor == torch.bfloat16 else 'fp32'}, "
            f"{'aligned' if aligned else 'any'}",
            kernel=count_kernel,
            types=TABLE_TYPES | search,
            constants=low_rank_constants(factor, COUNT, aligned=aligned) | {"BINS": BINS},
            config=COUNT.suited(factor=factor),
        )
        for factor, aligned in ((torch.bfloat16, True), (torch.float32, False))
    ]
    return on_rows.variants() + counting + aligned.variants(random=False) + sparse.variants(random=False)
