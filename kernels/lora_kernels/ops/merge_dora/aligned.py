"""The merge of a DoRA adapter into an aligned matrix of 16 bits: blocks of rows, chunk by chunk.

Both passes run over as many rows as the L2 cache holds before the next rows begin, so that the second reads W from
there. The second pass computes the factor of a row itself.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl

from lora_kernels.ops import aot
from lora_kernels.ops.configs import DORA_ROWS, LaunchConfig
from lora_kernels.ops.launch import ELEMENTS, on, options
from lora_kernels.ops.rounding import element_pointer, load_elements, store_rounded, widen
from lora_kernels.ops.single import PLAIN, ROWS, TYPES, WIDTH, Single, constants, offsets_of, product, tile_mask

# Bytes of W whose second read comes from the L2 cache: half of an H200's, which also takes the result.
CHUNK_BYTES: Final = 30 << 20
# Groups that are loaded at once.
UNROLL: Final = 2


@triton.jit(do_not_specialize=[*PLAIN, "first"])
def row_squares_kernel(
    w: tl.tensor,
    out: tl.tensor,  # noqa: ARG001 - both passes take the same
    a: tl.tensor,
    b: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    column_eighths: tl.tensor,
    w_eighths: tl.tensor,
    out_eighths: tl.tensor,  # noqa: ARG001
    first: tl.tensor,
    squares: tl.tensor,
    ELEMENT: tl.constexpr,
    OUTPUT: tl.constexpr,  # noqa: ARG001
    FACTOR: tl.constexpr,
    RANK: tl.constexpr,
    STEPS: tl.constexpr,
    UNROLL: tl.constexpr,
) -> None:
    """Program (block, segment) of 16 rows and 32 * STEPS columns, UNROLL groups at once. first: number of the first
    block. squares: float32 (segments, rows), the sum of V^2 over a row's part in a segment. For the rest see
    `single.Single`."""
    i_block, i_segment = first + tl.program_id(0), tl.program_id(1)
    start = i_segment * (STEPS * 32)
    o_rows = i_block * 16 + tl.arange(0, 16)
    o_w = offsets_of(i_block, w_eighths, start)
    scale, p_w = tl.load(scales), element_pointer(w, ELEMENT)
    b_squares = tl.zeros((16, 32), dtype=tl.float32)
    for i_group in range(i_segment * STEPS, tl.minimum((i_segment + 1) * STEPS, tl.cdiv(column_eighths, 4)), UNROLL):
        for i_part in tl.static_range(UNROLL):
            m_tile = tile_mask(o_rows, i_group + i_part, rows, column_eighths)
            # To be read again by the second pass.
            b_w = tl.load(p_w + (o_w + i_part * 32), m_tile, other=0, eviction_policy="evict_last")
            b_v = widen(b_w, ELEMENT) + product(a, b, i_block, i_group + i_part, 0, 1, FACTOR, RANK) * scale
            # 0 outside the matrix; NaN if a factor is infinite, but then so is the row.
            b_squares = tl.fma(b_v, b_v, b_squares)
        o_w += 32 * UNROLL
    tl.store(squares + i_segment * rows + o_rows, tl.sum(b_squares, axis=1), o_rows < rows)


@triton.jit(do_not_specialize=[*PLAIN, "first", "segments"])
def scale_rows_kernel(
    w: tl.tensor,
    out: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    column_eighths: tl.tensor,
    w_eighths: tl.tensor,
    out_eighths: tl.tensor,
    first: tl.tensor,
    squares: tl.tensor,
    magnitude: tl.tensor,
    segments: tl.tensor,
    ELEMENT: tl.constexpr,
    OUTPUT: tl.constexpr,
    FACTOR: tl.constexpr,
    RANK: tl.constexpr,
    STEPS: tl.constexpr,
    UNROLL: tl.constexpr,
) -> None:
    """Program as above. magnitude: float32 (rows,). segments: of squares, which all programs of the rows have
    written."""
    i_block, i_segment = first + tl.program_id(0), tl.program_id(1)
    start = i_segment * (STEPS * 32)
    o_rows = i_block * 16 + tl.arange(0, 16)
    m_rows = o_rows < rows
    b_squares = tl.zeros((16,), dtype=tl.float64)
    for i_other in range(segments):
        b_squares += tl.load(squares + i_other * rows + o_rows, m_rows, other=0.0).to(tl.float64)
    b_scale = tl.load(magnitude + o_rows, m_rows, other=0.0).to(tl.float64) / tl.sqrt(b_squares)
    b_scale = b_scale.to(tl.float32)[:, None]
    o_w, o_out = offsets_of(i_block, w_eighths, start), offsets_of(i_block, out_eighths, start)
    scale, p_w = tl.load(scales), element_pointer(w, ELEMENT)
    for i_group in range(i_segment * STEPS, tl.minimum((i_segment + 1) * STEPS, tl.cdiv(column_eighths, 4)), UNROLL):
        for i_part in tl.static_range(UNROLL):
            m_tile = tile_mask(o_rows, i_group + i_part, rows, column_eighths)
            b_w = load_elements(p_w + (o_w + i_part * 32), m_tile, False)
            b_v = widen(b_w, ELEMENT) + product(a, b, i_block, i_group + i_part, 0, 1, FACTOR, RANK) * scale
            store_rounded(out, o_out + i_part * 32, b_scale * b_v, m_tile, OUTPUT, True)
        o_w += 32 * UNROLL
        o_out += 32 * UNROLL


def merge(
    given: Single, magnitude: torch.Tensor, *, config: LaunchConfig = DORA_ROWS, chunk_bytes: int = CHUNK_BYTES
) -> None:
    """Merge into `given.out`. config: columns of a segment. chunk_bytes: of W, which both passes read before the
    next."""
    rows, columns = given.w.shape
    segments = -(-columns // config.columns)
    squares = torch.empty((segments, rows), device=given.w.device)
    magnitude = magnitude.float().contiguous()
    blocks = max(1, chunk_bytes // (2 * columns * ROWS))
    form = given.constants() | _form(config) | options(config)
    with on(given.w.device):
        for first in range(0, given.blocks, blocks):
            grid = (min(blocks, given.blocks - first), segments)
            row_squares_kernel[grid](*given.arguments(), first, squares, **form)
            scale_rows_kernel[grid](*given.arguments(), first, squares, magnitude, segments, **form)


def _form(config: LaunchConfig) -> dict[str, int]:
    return {"STEPS": config.columns // WIDTH, "UNROLL": UNROLL}


def variants() -> list[aot.Variant]:
    """Both passes, for several ranks and dtypes."""
    bf16, fp16 = torch.bfloat16, torch.float16
    types = TYPES | {"first": "i32", "squares": "*fp32"}
    more = {"magnitude": "*fp32", "segments": "i32"}
    return [
        aot.Variant(
            name=f"merge_dora rows {step} {ELEMENTS[element]}, rank {rank}",
            kernel=kernel,
            types=types | (more if step == "scale" else {}),
            constants=constants(element, element, element, rank=rank) | _form(DORA_ROWS),
            config=DORA_ROWS,
            steps=DORA_ROWS.columns // WIDTH // UNROLL,
            elements=ROWS * WIDTH * UNROLL,
        )
        for element, rank in ((bf16, 16), (bf16, 64), (fp16, 16))
        for step, kernel in (("norms", row_squares_kernel), ("scale", scale_rows_kernel))
    ]
