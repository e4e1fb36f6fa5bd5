"""TIES: the smallest kept magnitude of each delta by passes that count, then the vote of `sparse`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import COUNT, COUNT_PROGRAMS, LaunchConfig
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.launch import TABLE_TYPES, low_rank_constants, on, options
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.single import single
from lora_kernels.ops.sparse import MajoritySign, aligned
from lora_kernels.ops.sparse import kernel as sparse
from lora_kernels.ops.sparse.kernel import magnitude_bits
from lora_kernels.ops.ties_merge.limits import BINS, KEEP_ALL, KEEP_NONE, MAX_PASSES, advance, start
from lora_kernels.ops.tiles import adapter_delta, job_of, tile_of


@triton.jit
def tally(
    b_bits: tl.tensor, low: tl.tensor, shift: tl.tensor, counts: tl.tensor, BINS: tl.constexpr, PTX: tl.constexpr
) -> tl.tensor:
    """Add 1 to the bin of each element that has one, and return int32 1 for those above the last bin. b_bits: int32,
    negative for elements that do not count. counts: int64 pointer. PTX: False in the interpreter; `tl.atomic_add` on a
    block passes each element through shared memory."""
    if PTX:
        return tl.inline_asm_elementwise(
            """{ .reg .pred inside, above; .reg .b32 bin; .reg .b64 place;
            sub.s32 bin, $1, $2; shr.s32 bin, bin, $3; setp.lt.u32 inside, bin, $5; setp.ge.s32 above, bin, $5;
            mad.wide.u32 place, bin, 8, $4; @inside red.relaxed.gpu.global.add.u64 [place], 1;
            selp.b32 $0, 1, 0, above; }""",
            "=r,r,r,r,l,r",
            [b_bits, low, shift, counts.to(tl.int64), BINS],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        b_bins = ((b_bits - low) >> shift).to(tl.int64)
        tl.atomic_add(counts + b_bins, 1, mask=(b_bins >= 0) & (b_bins < BINS), sem="relaxed")
        return (b_bins >= BINS).to(tl.int32)


@triton.jit
def count_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    low: tl.tensor,
    shift: tl.tensor,
    done: tl.tensor,
    above: tl.tensor,
    counts: tl.tensor,
    programs: tl.tensor,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BINS: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """Program (chunk, adapter): every n-th tile of one adapter's delta, n the number of chunks. low, shift, done:
    `limits.Search`. above: int64 (adapters,), counts: int64 (adapters, BINS), see `limits.advance`; added to. programs:
    number of tiles. For the rest see `tables.Tables`, of one job."""
    i_adapter = tl.program_id(1).to(tl.int64)
    if tl.load(done + i_adapter) == 0:
        low_bits, bits_per_bin = tl.load(low + i_adapter).to(tl.int32), tl.load(shift + i_adapter).to(tl.int32)
        scale = tl.load(scales + i_adapter)
        b_above = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.int32)
        for i_tile in range(tl.program_id(0), programs, tl.num_programs(0)):
            job = job_of(jobs, owners, i_tile)
            o_rows, o_columns, rows, columns = tile_of(job, i_tile, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
            m_rows, m_columns = o_rows < rows, o_columns < columns
            b_delta = adapter_delta(
                factors, i_adapter, o_rows, o_columns, m_rows, m_columns, columns,
                FACTOR, NATIVE, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
            )  # fmt: skip
            b_bits = magnitude_bits(b_delta * scale).to(tl.int32)
            b_bits = tl.where(m_rows[:, None] & m_columns[None, :], b_bits, -1)
            b_above += tally(b_bits, low_bits, bits_per_bin, counts + i_adapter * BINS, BINS, PTX)
        tl.atomic_add(above + i_adapter, tl.sum(b_above).to(tl.int64), sem="relaxed")


def limits(
    w: torch.Tensor, adapters: Sequence[LowRank], density: float, *, config: LaunchConfig = COUNT
) -> torch.Tensor:
    """The smallest magnitude that each delta keeps, as the bits of a float32, int64 (adapters,). w: for its shape and
    layout. adapters: none of rank 0."""
    keep = int(density * w.numel())
    if keep in (0, w.numel()) or not adapters:
        return torch.full((len(adapters),), KEEP_NONE if keep == 0 else KEEP_ALL, device=w.device)
    table = tables.build([(w, w)], [adapters], rows=config.rows, columns=config.columns)
    search = start(w.shape, adapters, keep)
    for _ in range(MAX_PASSES):
        above = torch.zeros(len(adapters), dtype=torch.int64, device=w.device)
        counts = torch.zeros((len(adapters), BINS), dtype=torch.int64, device=w.device)
        with on(w.device):
            count_kernel[(min(table.programs, COUNT_PROGRAMS), len(adapters))](
                table.jobs, table.factors, table.scales, table.owners,
                search.low, search.shift, search.done, above, counts, table.programs,
                **low_rank_constants(table.factor_dtype, config, aligned=table.aligned),
                **options(config.suited(factor=table.factor_dtype)), BINS=BINS, PTX=not interpreted(),
            )  # fmt: skip
        search = advance(search, keep, above, counts)
    return search.low


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
    recipe: dict[str, Any] = {
        "weights": [weights[index] for index in present],
        "limits": limits(w, chosen, density),
        "keys": None,
        "method": method,
    }
    laid_out = single(w, out, chosen, most=aligned.MOST_ADAPTERS)
    if laid_out is not None and int(density * w.numel()):
        aligned.merge(laid_out, **recipe)
    else:
        sparse.merge(w, chosen, out, **recipe)


def variants() -> list[aot.Variant]:
    """The passes that count, for bf16 and float32 factors; and the merge itself."""
    search = {"low": "*i64", "shift": "*i64", "done": "*i64", "above": "*i64", "counts": "*i64", "programs": "i32"}
    counting = [
        aot.Variant(
            name=f"ties count, factors {'bf16' if factor == torch.bfloat16 else 'fp32'}, "
            f"{'aligned' if aligned else 'any'}",
            kernel=count_kernel,
            types=TABLE_TYPES | search,
            constants=low_rank_constants(factor, COUNT, aligned=aligned) | {"BINS": BINS, "PTX": True},
            config=COUNT.suited(factor=factor),
        )
        for factor, aligned in ((torch.bfloat16, True), (torch.float32, False))
    ]
    return counting + aligned.variants(random=False) + sparse.variants(random=False)
