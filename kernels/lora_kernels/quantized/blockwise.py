"""4-bit codes in blocks: two codes per byte, the first in the high nibble, one absolute maximum (absmax) per block.

A block is `blocksize` consecutive elements of the tensor; it may straddle rows, and the last one may be short. All
arithmetic is float32, as in bitsandbytes 0.50.2 on a CPU: a value is code * absmax.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from lora_kernels.quantized.codes import F32, NF4_BOUNDS, U8, Codebook
from lora_kernels.quantized.stochastic import round_nf4

# Lower bound of absmax in bitsandbytes, which keeps the reciprocal of an all-zero block's absmax finite.
SMALLEST: Final = np.float32(1e-38)
_ONE: Final = np.float32(1)
_ZERO: Final = 7


def packed_range(first: int, count: int) -> tuple[int, int]:
    """The bytes [start, stop) with the codes of the elements `first` to `first + count`."""
    return first // 2, (first + count + 1) // 2


def block_range(first: int, count: int, blocksize: int) -> tuple[int, int]:
    """The blocks [start, stop) of the elements `first` to `first + count`."""
    return first // blocksize, -(-(first + count) // blocksize)


def dequantize(packed: U8, absmax: F32, codebook: Codebook, blocksize: int, first: int, out: F32) -> F32:
    """Dequantize the elements from `first` on into `out`, contiguous and of any shape.

    packed: the bytes of `packed_range`. absmax: of the blocks of `block_range`.
    """
    flat = out.reshape(-1)
    _unpack(packed, codebook, first, flat)
    scale(flat, absmax, blocksize, first)
    return out


def _unpack(packed: U8, codebook: Codebook, first: int, out: F32) -> None:
    """Write the codebook's values, not scaled, to `out`, which is flat."""
    if out.size and first % 2:
        out[0] = codebook.values[packed[0] & 15]
        packed, out = packed[1:], out[1:]
    whole = out.size // 2
    if whole:
        target = out[: 2 * whole].view(np.uint64)
        # A byte is always a valid index; this mode skips the check.
        np.take(codebook.pairs, packed[:whole].astype(np.intp), out=target, mode="wrap")
    if out.size % 2:
        out[-1] = codebook.values[packed[whole] >> 4]


def scale(values: F32, absmax: F32, blocksize: int, first: int) -> None:
    """Multiply flat `values`, the elements from `first` on, by the absmax of their blocks, in place."""
    head = min(-first % blocksize, values.size)
    if head:
        np.multiply(values[:head], absmax[0], out=values[:head])
        values, absmax = values[head:], absmax[1:]
    whole = values.size // blocksize
    if whole:
        blocks = values[: whole * blocksize].reshape(whole, blocksize)
        np.multiply(blocks, absmax[:whole, None], out=blocks)
    if values.size % blocksize:
        rest = values[whole * blocksize :]
        np.multiply(rest, absmax[whole], out=rest)


def largest(values: F32, blocksize: int, scratch: F32) -> F32:
    """The absmax of each block of flat `values`, which start at a block boundary. A short last block gets at least
    1e-38, as in bitsandbytes. scratch: of the same size, overwritten."""
    magnitude = np.abs(values, out=scratch)
    whole = values.size // blocksize
    found = np.empty(-(-values.size // blocksize), np.float32)
    if whole:
        np.max(magnitude[: whole * blocksize].reshape(whole, blocksize), axis=1, out=found[:whole])
    if values.size % blocksize:
        found[whole] = np.maximum(magnitude[whole * blocksize :].max(), SMALLEST)
    return found


def quantize_nf4(
    values: F32,
    absmax: F32,
    blocksize: int,
    codes: U8,
    scratch: F32,
    *,
    random: npt.NDArray[np.uint32] | None = None,
) -> U8:
    """Quantize flat `values`, which start at a block boundary, into `codes` of the same size.

    absmax: from `largest`, for the codes of bitsandbytes. scratch: of the same size, overwritten. random: 32 bits per
    element, for stochastic rounding; None to round to the nearest, ties to the smaller.
    """
    _normalize(values, absmax, blocksize, scratch)
    if random is not None:
        return round_nf4(scratch, random, codes)
    above = np.empty(values.size, np.bool_)
    count = above.view(np.uint8)
    np.greater(scratch, NF4_BOUNDS[0], out=above)
    np.copyto(codes, count)
    for bound in NF4_BOUNDS[1:]:
        np.greater(scratch, bound, out=above)
        np.add(codes, count, out=codes)
    return codes


def _normalize(values: F32, absmax: F32, blocksize: int, out: F32) -> None:
    """Scale to -1 to 1: full blocks are multiplied by the reciprocal of their absmax, a short last one is divided by
    it."""
    whole = values.size // blocksize
    # Double quantization can make the absmax of the smallest blocks negative.
    divisor = np.where(np.abs(absmax) < SMALLEST, SMALLEST, absmax)
    if whole:
        reciprocal = _ONE / divisor[:whole]
        blocks, target = (array[: whole * blocksize].reshape(whole, blocksize) for array in (values, out))
        np.multiply(blocks, reciprocal[:, None], out=target)
    if values.size % blocksize:
        np.divide(values[whole * blocksize :], divisor[whole], out=out[whole * blocksize :])


def pack_nf4(codes: U8, out: U8) -> U8:
    """Pack two codes per byte. codes: flat; an odd number of them is padded with the code of zero."""
    whole = codes.size // 2
    np.left_shift(codes[: 2 * whole : 2], 4, out=out[:whole])
    np.bitwise_or(out[:whole], codes[1 : 2 * whole : 2], out=out[:whole])
    if codes.size % 2:
        out[whole] = (int(codes[-1]) << 4) | _ZERO
    return out
