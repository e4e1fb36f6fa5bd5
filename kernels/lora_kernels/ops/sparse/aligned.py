"""Sums and votes over the sparse deltas of up to four adapters, for an aligned matrix of 16 bits.

A warp walks along 16 rows. The deltas of a group of columns stay in registers until their sign is elected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot
from lora_kernels.ops.configs import SPARSE_ROWS
from lora_kernels.ops.launch import ELEMENTS, on, options, upload
from lora_kernels.ops.rounding import COMPILED, load, store_rounded, widen
from lora_kernels.ops.single import PLAIN, ROWS, TYPES, WIDTH, Single, constants, offsets_of, product, tile_mask
from lora_kernels.ops.sparse.philox import first_round, random_words

MOST_ADAPTERS: Final = 4
METHODS: Final = {None: 0, "total": 1, "frequency": 2}
SUM = tl.constexpr(METHODS[None])
TOTAL = tl.constexpr(METHODS["total"])
# Infinity; as integers, magnitudes above it are NaN.
INFINITY: Final = 0x7F800000
_SIGN = tl.constexpr(-(2**31))
IS_POSITIVE = tl.constexpr("set.gt.f32.f32 $0, $1, 0f00000000;")
RECIPROCAL = tl.constexpr("rcp.approx.ftz.f32 $0, $1;")


@triton.jit
def flipped(values: tl.tensor, signs: tl.tensor) -> tl.tensor:
    """values with the sign turned where signs, int32, has the uppermost bit."""
    return (values.to(tl.int32, bitcast=True) ^ signs).to(tl.float32, bitcast=True)


@triton.jit
def is_positive(values: tl.tensor) -> tl.tensor:
    """1.0 or 0.0, in one instruction."""
    if COMPILED:
        return tl.inline_asm_elementwise(IS_POSITIVE, "=f,f", [values], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return (values > 0).to(tl.float32)


@triton.jit
def vote_of(delta: tl.tensor, METHOD: tl.constexpr) -> tl.tensor:
    """What an adapter adds to the sum whose sign is elected."""
    if METHOD == TOTAL:
        return delta
    else:
        return tl.where(delta > 0, 1.0, tl.where(delta < 0, -1.0, delta))


@triton.jit
def quotient(total: tl.tensor, count: tl.tensor) -> tl.tensor:
    """total / count, rounded correctly, for counts of 1 to 4: the product with the reciprocal, corrected by what is
    left (Markstein). The reciprocal itself is corrected, as the processor's has an error of a unit in the last place.
    Below 2^-100 what is left may be lost."""
    if COMPILED:
        reciprocal = tl.inline_asm_elementwise(RECIPROCAL, "=f,f", [count], dtype=tl.float32, is_pure=True, pack=1)
        reciprocal = tl.fma(tl.fma(-count, reciprocal, 1.0), reciprocal, reciprocal)
        first = total * reciprocal
        better = tl.fma(tl.fma(-first, count, total), reciprocal, first)
        # Of an infinite total nothing is left but NaN.
        return tl.where(better == better, better, first)
    else:
        return tl.math.div_rn(total, count)


@triton.jit(do_not_specialize=[*PLAIN, "number_eighths"])
def sparse_rows_kernel(
    w: tl.tensor,
    out: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    column_eighths: tl.tensor,
    w_eighths: tl.tensor,
    out_eighths: tl.tensor,
    weights: tl.tensor,
    limits: tl.tensor,
    keys: tl.tensor,
    lanes: tl.tensor,
    number_eighths: tl.tensor,
    ELEMENT: tl.constexpr,
    OUTPUT: tl.constexpr,
    FACTOR: tl.constexpr,
    RANK: tl.constexpr,
    COUNT: tl.constexpr,
    RANDOM: tl.constexpr,
    METHOD: tl.constexpr,
    STEPS: tl.constexpr,
) -> None:
    """Program (block, segment) of 16 rows and 32 * STEPS columns.

    weights: float32 (COUNT,). limits, keys: as in `sparse.kernel`, limits of TIES at most 2^31 - 1. lanes: int64 (16,
    8), 0 to 7 in each row: numbers that are loaded arrive in the lanes that hold the elements. number_eighths: of the
    distance of two rows in the numbers of elements. METHOD: see METHODS. For the rest see `single.Single`.
    """
    i_block, i_segment = tl.program_id(0), tl.program_id(1)
    start = i_segment * (STEPS * 32)
    o_rows = i_block * 16 + tl.arange(0, 16)
    o_w, o_out = offsets_of(i_block, w_eighths, start), offsets_of(i_block, out_eighths, start)
    factors = ()
    bounds = ()
    key_words = ()
    for i_adapter in tl.static_range(COUNT):
        factors = factors + (tl.load(scales + i_adapter), tl.load(weights + i_adapter))
        limit = tl.load(limits + i_adapter)
        if RANDOM:
            # The largest word that keeps an element.
            bounds = bounds + (((limit << 8) - 1).to(tl.uint32),)
            key = tl.load(keys + i_adapter)
            key_words = key_words + (key.to(tl.uint32), (key >> 32).to(tl.uint32))
        else:
            # The largest magnitude that is dropped: none is as small as NaN, and only NaN is above infinity.
            largest = tl.minimum(limit - 1, 0x7F800000).to(tl.int32)
            bounds = bounds + (largest.to(tl.float32, bitcast=True),)
    if RANDOM:
        first = o_rows.to(tl.int64) * (number_eighths.to(tl.int64) * 2) + start // 4
        o_lanes = tl.arange(0, 16)[:, None] * 8 + tl.arange(0, 8)[None, :]
        b_counters = (first[:, None] + tl.load(lanes + o_lanes.to(tl.int64))).to(tl.uint32)
    for i_group in range(i_segment * STEPS, tl.minimum((i_segment + 1) * STEPS, tl.cdiv(column_eighths, 4))):
        m_tile = tile_mask(o_rows, i_group, rows, column_eighths)
        b_w = load(w, o_w, m_tile, ELEMENT, True)
        deltas = ()
        if RANDOM:
            b_high, b_low = first_round(b_counters)
            b_counters += 8
        for i_adapter in tl.static_range(COUNT):
            b_delta = product(a, b, i_block, i_group, i_adapter, COUNT, FACTOR, RANK) * factors[2 * i_adapter]
            if RANDOM:
                word0, word1, word2, word3 = random_words(
                    b_high, b_low, key_words[2 * i_adapter], key_words[2 * i_adapter + 1]
                )
                b_words = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), (16, 32))
                b_delta = tl.where(b_words <= bounds[i_adapter], b_delta, 0.0)
            else:
                b_delta = tl.where(tl.abs(b_delta) <= bounds[i_adapter], 0.0, b_delta)
            deltas = deltas + (b_delta,)
        if METHOD == SUM:
            b_total = deltas[0] * factors[1]
            for i_adapter in tl.static_range(1, COUNT):
                b_total += deltas[i_adapter] * factors[2 * i_adapter + 1]
        else:
            b_elected = vote_of(deltas[0], METHOD)
            for i_adapter in tl.static_range(1, COUNT):
                b_elected += vote_of(deltas[i_adapter], METHOD)
            b_signs = b_elected.to(tl.int32, bitcast=True) & _SIGN
            b_same = flipped(deltas[0], b_signs)
            b_total = tl.maximum(b_same, 0.0) * factors[1]
            b_count = is_positive(b_same)
            for i_adapter in tl.static_range(1, COUNT):
                b_same = flipped(deltas[i_adapter], b_signs)
                b_total += tl.maximum(b_same, 0.0) * factors[2 * i_adapter + 1]
                b_count += is_positive(b_same)
            b_total = flipped(quotient(b_total, tl.maximum(b_count, 1.0)), b_signs)
            b_total = tl.where(b_elected == b_elected, b_total, b_elected)
        # A sum of nothing is +0.
        store_rounded(out, o_out, widen(b_w, ELEMENT) + (b_total + 0.0), m_tile, OUTPUT, True)
        o_w += 32
        o_out += 32


def merge(
    given: Single,
    *,
    weights: Sequence[float],
    limits: torch.Tensor,
    keys: Sequence[int] | None,
    method: str | None,
) -> None:
    """Merge into `given.out`. Arguments as of `sparse.kernel.merge`."""
    device = given.w.device
    signed = [key - 2**64 if key >= 2**63 else key for key in keys or [0] * len(weights)]
    with on(device):
        sparse_rows_kernel[(given.blocks, -(-given.groups // _steps()))](
            *given.arguments(),
            upload(weights, torch.float32, device),
            limits,
            upload(signed, torch.int64, device),
            torch.arange(8, device=device).repeat(ROWS),
            (given.row_stride or 0) // 8,
            **given.constants(), **_form(len(weights), random=keys is not None, method=method),
            **options(SPARSE_ROWS),
        )  # fmt: skip


def _steps() -> int:
    return SPARSE_ROWS.columns // WIDTH


def _form(count: int, *, random: bool, method: str | None) -> dict[str, Any]:
    return {"COUNT": count, "RANDOM": random, "METHOD": METHODS[method], "STEPS": _steps()}


def variants(*, random: bool) -> list[aot.Variant]:
    """All methods; several ranks and numbers of adapters."""
    more = {"weights": "*fp32", "limits": "*i64", "keys": "*i64", "lanes": "*i64", "number_eighths": "i64"}
    methods = (None, "total") if random else ("total", "frequency")
    return [
        aot.Variant(
            name=f"{'dare' if random else 'ties'} rows {method or 'linear'} {count} x rank {rank}, {ELEMENTS[element]}",
            kernel=sparse_rows_kernel,
            types=TYPES | more,
            constants=constants(element, element, element, rank=rank) | _form(count, random=random, method=method),
            config=SPARSE_ROWS,
            steps=_steps(),
            elements=ROWS * WIDTH,
        )
        for method in methods
        for element, count, rank in (
            (torch.bfloat16, 4, 16), (torch.bfloat16, 2, 64), (torch.float16, 4, 16)
        )
    ]  # fmt: skip
