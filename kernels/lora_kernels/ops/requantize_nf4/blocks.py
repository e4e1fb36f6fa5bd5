"""Kernels on blocks, and functions shared with the fused kernel: absmax, codes, packing, double quantization."""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from lora_kernels.quantized.blockwise import SMALLEST

_SMALLEST: Final = tl.constexpr(float(SMALLEST))


@triton.jit
def largest(b_blocks: tl.tensor, AXIS: tl.constexpr) -> tl.tensor:
    """The largest magnitude along an axis, float32. Compared as integers, of which NaN is the largest."""
    b_bits = (b_blocks.to(tl.uint32, bitcast=True) & 0x7FFFFFFF).to(tl.int32)
    return tl.max(b_bits, axis=AXIS).to(tl.float32, bitcast=True)


@triton.jit
def divisor(b_absmax: tl.tensor) -> tl.tensor:
    """The absmax, raised to a value whose reciprocal is finite."""
    return tl.where(b_absmax < _SMALLEST, _SMALLEST, b_absmax)


@triton.jit
def nf4_codes(bounds: tl.tensor, b_scaled: tl.tensor) -> tl.tensor:
    """The number of the 15 ascending `bounds` that are less, uint8, by binary search."""
    b_codes = tl.zeros(b_scaled.shape, dtype=tl.int64)
    for i_step in tl.static_range(4):
        m_above = b_scaled > tl.load(bounds + (b_codes + ((8 >> i_step) - 1)))
        b_codes += m_above.to(tl.int64) << (3 - i_step)
    return b_codes.to(tl.uint8)


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
def pack(b_codes: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> tl.tensor:
    """Pack codes (ROWS, COLUMNS) into bytes (ROWS, COLUMNS / 2), the first of two in the high nibble."""
    b_high, b_low = tl.split(tl.reshape(b_codes, (ROWS, COLUMNS // 2, 2)))
    return (b_high << 4) | b_low


@triton.jit
def quantize_blocks_kernel(
    merged: tl.tensor,
    packed: tl.tensor,
    absmax: tl.tensor,
    bounds: tl.tensor,
    elements: tl.tensor,
    ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
) -> None:
    """Quantize flat float32 `merged` to NF4: each row of the program's tile is a block of the format. packed, absmax
    (float32): outputs. bounds: see `nf4_codes`. elements: their number."""
    if ALIGNED:
        merged = tl.multiple_of(merged, 16)
    o_blocks = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_elements = o_blocks[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    b_blocks = tl.load(merged + o_elements, o_elements < elements, other=0.0)
    m_short = (o_blocks + 1) * BLOCKSIZE > elements
    b_largest = largest(b_blocks, 1)
    b_absmax = tl.where(m_short, divisor(b_largest), b_largest)
    tl.store(absmax + o_blocks, b_absmax, o_blocks * BLOCKSIZE < elements)
    b_divisor = divisor(b_absmax)
    # bitsandbytes divides in a short last block, and multiplies by the reciprocal in all others.
    b_divided = tl.math.div_rn(b_blocks, b_divisor[:, None])
    b_scaled = tl.where(m_short[:, None], b_divided, b_blocks * tl.math.div_rn(1.0, b_divisor)[:, None])
    b_bytes = pack(nf4_codes(bounds, b_scaled), BLOCK_ROWS, BLOCKSIZE)
    # An odd last element is followed by a zero, whose code completes the byte.
    o_bytes = o_blocks[:, None] * (BLOCKSIZE // 2) + tl.arange(0, BLOCKSIZE // 2)[None, :]
    tl.store(packed + o_bytes, b_bytes, o_bytes * 2 < elements)


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
    b_largest = largest(b_centred, 1)
    tl.store(nested + o_nested, b_largest, o_nested * BLOCKSIZE < blocks)
    b_divisor = tl.where(b_largest > 0, b_largest, 1.0)
    b_scaled = tl.math.div_rn(b_centred, b_divisor[:, None])
    tl.store(codes + o_blocks, nearest(table, b_scaled), m_blocks)
