"""Kernels on blocks: NF4 of a merge that went through memory, and double quantization."""

from __future__ import annotations

import triton
import triton.language as tl

from lora_kernels.ops.quantized.lanes import divisor, encode8, lane_table


@triton.jit
def nearest(table: tl.tensor, b_scaled: tl.tensor) -> tl.tensor:
    """uint8 index of the nearest of 256 ascending numbers by float32 differences, ties to the smaller."""
    b_below = tl.zeros(b_scaled.shape, dtype=tl.int64)
    for i_step in tl.static_range(8):
        m_reached = tl.load(table + (b_below + (128 >> i_step))) <= b_scaled
        b_below += m_reached.to(tl.int64) << (7 - i_step)
    b_above = tl.minimum(b_below + 1, 255)
    m_nearer = tl.abs(b_scaled - tl.load(table + b_above)) < tl.abs(b_scaled - tl.load(table + b_below))
    return tl.where(m_nearer, b_above, b_below).to(tl.uint8)


@triton.jit
def quantize_blocks_kernel(
    merged: tl.tensor,
    packed: tl.tensor,
    absmax: tl.tensor,
    encoding: tl.tensor,
    elements: tl.tensor,
    BLOCK_ROWS: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
) -> None:
    """Quantize flat float32 `merged` to NF4: each row of the program's tile is a block of the format. packed, absmax
    (float32): outputs. encoding: see `lanes.encoding`. elements: their number."""
    merged = tl.multiple_of(merged, 16)
    codes = lane_table(encoding, 32)
    o_blocks = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_elements = o_blocks[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    b_blocks = tl.load(merged + o_elements, o_elements < elements, other=0.0)
    m_short = (o_blocks + 1) * BLOCKSIZE > elements
    b_largest = tl.max(b_blocks.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    b_divisor = divisor(b_largest)
    b_absmax = tl.where(m_short, b_divisor, b_largest.to(tl.float32, bitcast=True))
    tl.store(absmax + o_blocks, b_absmax, o_blocks * BLOCKSIZE < elements)
    # bitsandbytes divides in a short last block, and multiplies by the reciprocal in all others.
    b_divided = tl.math.div_rn(b_blocks, b_divisor[:, None])
    b_scaled = tl.where(m_short[:, None], b_divided, b_blocks * tl.math.div_rn(1.0, b_divisor)[:, None])
    b_words = encode8(tl.reshape(b_scaled, (BLOCK_ROWS, BLOCKSIZE // 8, 8)), codes)
    # Bytes, since the last word may not be whole. An odd last element is followed by a zero, whose code completes it.
    o_shifts = tl.arange(0, 4) * 8
    b_bytes = (b_words[:, :, None] >> o_shifts[None, None, :]).to(tl.uint8)
    o_bytes = o_blocks[:, None] * (BLOCKSIZE // 2) + tl.arange(0, BLOCKSIZE // 2)[None, :]
    tl.store(packed + o_bytes, tl.reshape(b_bytes, (BLOCK_ROWS, BLOCKSIZE // 2)), o_bytes * 2 < elements)


@triton.jit
def compress_kernel(
    absmax: tl.tensor,
    offset: tl.tensor,
    table: tl.tensor,
    codes: tl.tensor,
    nested: tl.tensor,
    blocks: tl.tensor,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
) -> None:
    """Double quantization of float32 `absmax`. codes (uint8), nested (float32, one per BLOCKSIZE): outputs. offset: the
    mean of the absmax. table: see `nearest`. blocks: the number of absmax."""
    if ALIGNED:
        absmax = tl.multiple_of(absmax, 16)
    o_nested = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_blocks = o_nested[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    m_blocks = o_blocks < blocks
    b_centred = tl.where(m_blocks, tl.load(absmax + o_blocks, m_blocks, other=0.0) - tl.load(offset), 0.0)
    b_largest = tl.max(b_centred.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1).to(tl.float32, bitcast=True)
    tl.store(nested + o_nested, b_largest, o_nested * BLOCKSIZE < blocks)
    b_divisor = tl.where(b_largest > 0, b_largest, 1.0)
    b_scaled = tl.math.div_rn(b_centred, b_divisor[:, None])
    tl.store(codes + o_blocks, nearest(table, b_scaled), m_blocks)
