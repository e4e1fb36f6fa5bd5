"""Sums and votes over sparse deltas as one Triton kernel: one read and one write of W, with deltas computed from the
factors and never stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot, tables
from lora_kernels.ops.configs import SPARSE, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, TABLE_TYPES, low_rank_constants, on, options, upload
from lora_kernels.ops.low_rank import LowRank
from lora_kernels.ops.rounding import store_rounded, widen
from lora_kernels.ops.sparse import MajoritySign
from lora_kernels.ops.tiles import (
    COUNT,
    E_COLUMN,
    E_ROW,
    FIRST,
    OUT,
    OUT_COLUMN,
    OUT_ROW,
    adapter_delta,
    job_of,
    load_tile,
    offsets,
    place_of,
    tile_of,
)

_METHODS: Final[dict[MajoritySign | None, int]] = {None: 0, "total": 1, "frequency": 2}
SUM = tl.constexpr(_METHODS[None])
TOTAL = tl.constexpr(_METHODS["total"])


@triton.jit
def magnitude_bits(values: tl.tensor) -> tl.tensor:
    """uint32 bits of |values|, float32: in the order of magnitudes, with NaN above infinity."""
    return values.to(tl.uint32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def random_words(
    key: tl.tensor,
    job: tl.tensor,
    o_rows: tl.tensor,
    o_columns: tl.tensor,
    GROUPED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
) -> tl.tensor:
    """`numeric.philox.random_bits` of the tile's elements, uint32: word e % 4 of counter e // 4 for element e.

    GROUPED: element numbers are consecutive along a row and rows start at multiples of four, so that four neighbours
    share a counter; otherwise each element computes four words and takes one.
    """
    if GROUPED:
        _, i_column = place_of(job, tl.program_id(0), BLOCK_COLUMNS)
        o_groups = i_column * (BLOCK_COLUMNS // 4) + tl.arange(0, BLOCK_COLUMNS // 4)
        counters = o_rows[:, None] * (tl.load(job + E_ROW) // 4) + o_groups[None, :]
        word0, word1, word2, word3 = tl.randint4x(key, counters)
        pairs = tl.join(tl.join(word0, word2), tl.join(word1, word3))
        return tl.reshape(pairs, (BLOCK_ROWS, BLOCK_COLUMNS))
    else:
        elements = o_rows[:, None] * tl.load(job + E_ROW) + o_columns[None, :] * tl.load(job + E_COLUMN)
        word0, word1, word2, word3 = tl.randint4x(key, elements // 4)
        which = elements % 4
        return tl.where(which < 2, tl.where(which == 0, word0, word1), tl.where(which == 2, word2, word3))


@triton.jit
def sparse_merge_kernel(
    jobs: tl.tensor,
    factors: tl.tensor,
    scales: tl.tensor,
    owners: tl.tensor,
    weights: tl.tensor,
    limits: tl.tensor,
    keys: tl.tensor,
    ELEMENT: tl.constexpr,
    OUTPUT: tl.constexpr,
    FACTOR: tl.constexpr,
    NATIVE: tl.constexpr,
    ALIGNED: tl.constexpr,
    RANDOM: tl.constexpr,
    GROUPED: tl.constexpr,
    METHOD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """weights: float32 (adapters,). limits: int64 (adapters,): with RANDOM, how many of 2^24 random numbers keep an
    element; without, the smallest kept magnitude, as `magnitude_bits`. keys: int64 (adapters,), of the random numbers.
    METHOD: see `_METHODS`. For the rest see `tables.Tables`."""
    i_program = tl.program_id(0)
    job = job_of(jobs, owners, i_program)
    o_rows, o_columns, rows, columns = tile_of(job, i_program, BLOCK_ROWS, BLOCK_COLUMNS, ALIGNED)
    m_rows, m_columns = o_rows < rows, o_columns < columns
    m_tile = m_rows[:, None] & m_columns[None, :]
    b_w = load_tile(job, o_rows, o_columns, m_tile, ELEMENT, ALIGNED)
    # With a vote, deltas of either sign are summed and counted (two counts in one word) until the sign is known, so
    # that one pass over the adapters suffices.
    b_up = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    b_down = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    b_elected = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    b_counts = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.int32)
    first = tl.load(job + FIRST)
    for i_adapter in range(first, first + tl.load(job + COUNT)):
        b_delta = adapter_delta(
            factors, i_adapter, o_rows, o_columns, m_rows, m_columns, columns,
            FACTOR, NATIVE, ALIGNED, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
        )  # fmt: skip
        b_delta *= tl.load(scales + i_adapter)
        limit = tl.load(limits + i_adapter).to(tl.uint32)
        if RANDOM:
            b_words = random_words(
                tl.load(keys + i_adapter), job, o_rows, o_columns, GROUPED, BLOCK_ROWS, BLOCK_COLUMNS
            )
            b_delta = tl.where((b_words >> 8) < limit, b_delta, 0.0)
        else:
            b_delta = tl.where(magnitude_bits(b_delta) >= limit, b_delta, 0.0)
        b_weighted = b_delta * tl.load(weights + i_adapter)
        if METHOD == SUM:
            b_up += b_weighted
        else:
            m_up, m_down = b_delta > 0, b_delta < 0
            b_up += tl.where(m_up, b_weighted, 0.0)
            b_down += tl.where(m_down, b_weighted, 0.0)
            b_counts += m_up.to(tl.int32) + (m_down.to(tl.int32) << 16)
            if METHOD == TOTAL:
                b_elected += b_delta
            else:
                b_elected += tl.where(m_up, 1.0, tl.where(m_down, -1.0, b_delta))
    if METHOD != SUM:
        m_positive = b_elected >= 0
        b_count = tl.where(m_positive, b_counts & 0xFFFF, b_counts >> 16)
        b_mean = tl.math.div_rn(tl.where(m_positive, b_up, b_down), tl.maximum(b_count, 1).to(tl.float32))
        b_up = tl.where(b_elected == b_elected, b_mean, b_elected)
    o_out = offsets(job, o_rows, o_columns, OUT_ROW, OUT_COLUMN, ALIGNED)
    store_rounded(tl.load(job + OUT), o_out, widen(b_w, ELEMENT) + b_up, m_tile, OUTPUT, ALIGNED)


def merge(
    w: torch.Tensor,
    adapters: Sequence[LowRank],
    out: torch.Tensor,
    *,
    weights: Sequence[float],
    limits: torch.Tensor,
    keys: Sequence[int] | None,
    method: MajoritySign | None,
    config: LaunchConfig = SPARSE,
) -> None:
    """Merge checked arguments, without adapters of rank 0, into `out`. limits, keys: see the kernel; keys None to drop
    by magnitude."""
    table = tables.build([(w, out)], [adapters], rows=config.rows, columns=config.columns)
    if not table.programs:
        return
    signed = [key - 2**64 if key >= 2**63 else key for key in keys or [0] * len(adapters)]
    with on(w.device):
        sparse_merge_kernel[(table.programs,)](
            table.jobs, table.factors, table.scales, table.owners,
            upload(weights, torch.float32, w.device), limits,
            upload(signed, torch.int64, w.device),
            **low_rank_constants(table.factor_dtype, config, aligned=table.aligned),
                **options(config.suited(factor=table.factor_dtype)),
            ELEMENT=ELEMENTS[w.dtype], OUTPUT=ELEMENTS[out.dtype], RANDOM=keys is not None,
            GROUPED=table.aligned and table.numbered_along_rows, METHOD=_METHODS[method],
        )  # fmt: skip


def variants(*, random: bool) -> list[aot.Variant]:
    """All methods and layouts, several dtypes."""
    bf16, fp32 = torch.bfloat16, torch.float32
    methods: list[MajoritySign | None] = [None, "total"] if random else ["total", "frequency"]
    return [
        _variant(w, factor, method, aligned=aligned, random=random)
        for method in methods
        for w, factor, aligned in ((bf16, bf16, True), (bf16, fp32, False), (fp32, fp32, True))
    ]


def _variant(
    w: torch.dtype, factor: torch.dtype, method: MajoritySign | None, *, aligned: bool, random: bool
) -> aot.Variant:
    form = f"{'dare' if random else 'ties'} {method or 'linear'}"
    constants: dict[str, Any] = {"ELEMENT": ELEMENTS[w], "OUTPUT": ELEMENTS[w], "RANDOM": random, "GROUPED": aligned}
    return aot.Variant(
        name=f"{form} {ELEMENTS[w]}, factors {ELEMENTS[factor]}, {'aligned' if aligned else 'any'}",
        kernel=sparse_merge_kernel,
        types=TABLE_TYPES | {"weights": "*fp32", "limits": "*i64", "keys": "*i64"},
        constants=low_rank_constants(factor, SPARSE, aligned=aligned) | constants | {"METHOD": _METHODS[method]},
        config=SPARSE.suited(factor=factor),
    )
