"""Codes of 4 and 8 bits in registers: a table lies in the lanes of a warp and is read by shuffles, without memory.

Each inline assembly has a plain form, which the interpreter runs (`COMPILED`), with the same bits. A shuffle
needs all lanes of the warp: mask loads and stores around these functions, never the functions.

How NF4 is encoded: fma(15, y, 2^23 + 15) has the number of a bin of width 1/15 in its low bits, and no bin holds two of
the 15 bounds. y as an integer in the order of floats, with bits 26 to 29 set, differs from the bound of its bin only
below them: they are set in every bound, and in every number of a bin that has one. So the bin's entry (`bins`) plus 4
times that integer carries into the highest 4 bits, the code, exactly if y is above the bound.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from lora_kernels.ops.rounding import COMPILED
from lora_kernels.quantized.blockwise import SMALLEST
from lora_kernels.quantized.codes import NF4_BOUNDS

_BINS: Final = 32
_PER_UNIT: Final = 15
# The float32 from which the bin is read: its lowest mantissa bit is 1.
_ORIGIN: Final = 2**23 + _PER_UNIT
# Set in |bound| for all bounds.
_COMMON: Final = 0x3C000000
# Where the bounds begin in the table of `encoding`.
BOUNDS: Final = tl.constexpr(_BINS)
# Elements of a word of eight codes from its highest bits down: a byte has the first of two in its high nibble.
_FROM_THE_TOP: Final = (6, 7, 4, 5, 2, 3, 0, 1)


def _shuffle(result: str, table: str, lane: str) -> str:
    return f"shfl.sync.idx.b32 {result}, {table}, {lane}, 31, -1; "


def _decode(element: int) -> str:
    shift = 8 * (element // 2) + 4 * (1 - element % 2)
    # The lane is the low 5 bits; the highest of them is harmless, since the table is there twice.
    return f"shr.u32 t, $8, {shift}; {_shuffle(f'${element}', '$9', 't')}"


def _encode(element: int, *, first: bool) -> str:
    insert = "shr.u32 $0, t, 28; " if first else "shf.l.wrap.b32 $0, t, $0, 4; "
    return (
        f"fma.rn.f32 q, ${element + 1}, 0f{_bits(_PER_UNIT):08X}, 0f{_bits(_ORIGIN):08X}; mov.b32 t, q; "
        f"{_shuffle('t', '$9', 't')}"
        f"mov.b32 y, ${element + 1}; shr.s32 s, y, 31; xor.b32 y, y, s; or.b32 y, y, {_COMMON}; "
        f"shl.b32 y, y, 2; add.u32 t, t, y; {insert}"
    )


def _decode_int8(element: int) -> str:
    # The byte, plus 128, as the low mantissa bits of 2^23.
    return (
        f"prmt.b32 t, x, {_bits(2**23)}, {0x7440 + element}; mov.b32 ${element}, t; "
        f"sub.rn.f32 ${element}, ${element}, 0f{_bits(2**23 + 128):08X}; "
    )


def _bits(number: float) -> int:
    return int(np.float32(number).view(np.uint32))


_SMALLEST: Final = tl.constexpr(_bits(float(SMALLEST)))
LANE: Final = tl.constexpr("mov.u32 $0, %laneid; // $1")
DECODE: Final = tl.constexpr("{ .reg .b32 t; " + "".join(map(_decode, range(8))) + "}")
ENCODE: Final = tl.constexpr(
    "{ .reg .f32 q; .reg .b32 t, y, s; "
    + "".join(_encode(element, first=not i) for i, element in enumerate(_FROM_THE_TOP))
    + "}"
)
DECODE_INT8: Final = tl.constexpr(
    "{ .reg .b32 x, t; xor.b32 x, $4, 0x80808080; " + "".join(map(_decode_int8, range(4))) + "}"
)


def bins() -> npt.NDArray[np.uint32]:
    """The entry of each bin: its code, or for a bin with a bound the code below it, in the highest 4 bits; and what
    carries into them for numbers above the bound."""
    found = np.empty(_BINS, np.uint32)
    bin_of = np.rint(NF4_BOUNDS.astype(np.float64) * _PER_UNIT + _PER_UNIT).astype(int)
    integers = NF4_BOUNDS.view(np.int32)
    ordered = (integers ^ (integers >> 31)) | _COMMON
    for i in range(_BINS):
        below = int((bin_of < i).sum())
        # 0x3FFFFFFF: no number is above it.
        bound = int(ordered[below]) if i in bin_of else 0x3FFFFFFF
        found[i] = ((below << 28) + (1 << 28) - 4 - (bound << 2)) & 0xFFFFFFFF
    return found


@cache
def encoding(device: torch.device) -> torch.Tensor:
    """The table of `encode8` on a device: 32 bins, as bits of float32, then 15 bounds."""
    table = np.concatenate((bins().view(np.float32), NF4_BOUNDS))
    return torch.from_numpy(table).to(device)


@triton.jit
def lane_table(table: tl.tensor, ENTRIES: tl.constexpr) -> tl.tensor:
    """A table of float32 in the lanes of the warp, one entry each, from the first again after ENTRIES (a power of two);
    plainly its pointer."""
    if COMPILED:
        lane = tl.inline_asm_elementwise(LANE, "=r,r", [tl.program_id(0)], dtype=tl.int32, is_pure=True, pack=1)
        return tl.load(table + (lane & (ENTRIES - 1)))
    else:
        return table


@triton.jit
def octets(
    e0: tl.tensor,
    e1: tl.tensor,
    e2: tl.tensor,
    e3: tl.tensor,
    e4: tl.tensor,
    e5: tl.tensor,
    e6: tl.tensor,
    e7: tl.tensor,
) -> tl.tensor:
    """Join eight blocks as a new last dimension."""
    even = tl.join(tl.join(e0, e4), tl.join(e2, e6))
    odd = tl.join(tl.join(e1, e5), tl.join(e3, e7))
    return tl.reshape(tl.join(even, odd), e0.shape + [8])  # noqa: RUF005


@triton.jit
def _shifts(dimensions: tl.constexpr) -> tl.tensor:
    """Where the codes of a word lie, in a last dimension of 8 after `dimensions` of 1."""
    o_element = tl.arange(0, 8)
    return tl.reshape((o_element // 2) * 8 + (1 - o_element % 2) * 4, [1] * dimensions + [8])


@triton.jit
def decode8(b_words: tl.tensor, table: tl.tensor) -> tl.tensor:
    """The float32 values, in a last dimension of 8, of uint32 words of eight 4-bit codes. table: `lane_table` of 16."""
    if COMPILED:
        e0, e1, e2, e3, e4, e5, e6, e7 = tl.inline_asm_elementwise(
            DECODE, "=&f,=&f,=&f,=&f,=&f,=&f,=&f,=&f,r,f", [b_words, table],
            dtype=(tl.float32,) * 8, is_pure=True, pack=1,
        )  # fmt: skip
        return octets(e0, e1, e2, e3, e4, e5, e6, e7)
    else:
        return decode8_plainly(b_words, table)


@triton.jit
def decode8_plainly(b_words: tl.tensor, values: tl.tensor) -> tl.tensor:
    b_codes = (tl.expand_dims(b_words, -1) >> _shifts(len(b_words.shape))) & 15
    return tl.load(values + b_codes.to(tl.int64))


@triton.jit
def decode_int8(b_words: tl.tensor) -> tl.tensor:
    """The float32 values, in a last dimension of 4, of uint32 words of four int8 codes."""
    if COMPILED:
        e0, e1, e2, e3 = tl.inline_asm_elementwise(
            DECODE_INT8, "=&f,=&f,=&f,=&f,r", [b_words], dtype=(tl.float32,) * 4, is_pure=True, pack=1
        )
        return tl.reshape(tl.join(tl.join(e0, e2), tl.join(e1, e3)), e0.shape + [4])  # noqa: RUF005
    else:
        return decode_int8_plainly(b_words)


@triton.jit
def decode_int8_plainly(b_words: tl.tensor) -> tl.tensor:
    o_shifts = tl.reshape(tl.arange(0, 4) * 8, [1] * len(b_words.shape) + [4])
    b_bytes = (tl.expand_dims(b_words, -1) >> o_shifts) & 255
    return b_bytes.to(tl.uint8).to(tl.int8, bitcast=True).to(tl.float32)


@triton.jit
def split8(b: tl.tensor) -> tuple[tl.tensor, ...]:
    """The eight blocks that `octets` joined."""
    even, odd = tl.split(tl.reshape(b, b.shape[:-1] + [2, 2, 2]))  # noqa: RUF005
    even_0, even_1 = tl.split(even)
    odd_0, odd_1 = tl.split(odd)
    e0, e4 = tl.split(even_0)
    e2, e6 = tl.split(even_1)
    e1, e5 = tl.split(odd_0)
    e3, e7 = tl.split(odd_1)
    return e0, e1, e2, e3, e4, e5, e6, e7


@triton.jit
def encode8(b_scaled: tl.tensor, table: tl.tensor) -> tl.tensor:
    """uint32 words of the NF4 codes of float32 numbers from -1 to 1 (and one float32 beyond), eight in the last
    dimension. table: `lane_table` of 32 of `encoding`."""
    if COMPILED:
        e0, e1, e2, e3, e4, e5, e6, e7 = split8(b_scaled)
        return tl.inline_asm_elementwise(
            ENCODE, "=&r,f,f,f,f,f,f,f,f,r", [e0, e1, e2, e3, e4, e5, e6, e7, table.to(tl.uint32, bitcast=True)],
            dtype=tl.uint32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return encode8_plainly(b_scaled, table)


@triton.jit
def encode8_plainly(b_scaled: tl.tensor, table: tl.tensor) -> tl.tensor:
    b_codes = tl.zeros(b_scaled.shape, dtype=tl.int64)
    for i_step in tl.static_range(4):
        m_above = b_scaled > tl.load(table + (BOUNDS + b_codes + ((8 >> i_step) - 1)))
        b_codes += m_above.to(tl.int64) << (3 - i_step)
    dimensions: tl.constexpr = len(b_scaled.shape) - 1
    return tl.sum(b_codes.to(tl.uint32) << _shifts(dimensions), axis=dimensions)


@triton.jit
def divisor(b_bits: tl.tensor) -> tl.tensor:
    """The absmax of the bits, int32, raised to a float32 whose reciprocal is finite."""
    return tl.maximum(b_bits, _SMALLEST).to(tl.float32, bitcast=True)
