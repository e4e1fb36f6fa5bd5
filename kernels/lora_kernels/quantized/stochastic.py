"""Seeded stochastic rounding: to one of the two neighbours, the nearer one more likely, so that updates smaller than
the spacing survive on average. The random bits are those of `lora_kernels.numeric.philox`, by tensor and element.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from lora_kernels.quantized.codes import F32, NF4, U8, Array

U32 = npt.NDArray[np.uint32]
_NAN: Final = 0x7FC0
_INFINITE: Final = np.uint32(0x7F800000)


def round_bf16(values: F32, random: U32, out: Array) -> Array:
    """Round float32 `values` to bf16 (uint16, same shape). random: 32 bits per element, of which the upper 16 decide.

    Values that bf16 represents exactly are unchanged. Infinity stays infinity, NaN becomes 0x7FC0; numbers above the
    largest bf16 may round to infinity.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    # The probability of a carry out of the lower half is that half as a fraction.
    rounded = (bits + (random.reshape(bits.shape) >> np.uint32(16))) >> np.uint32(16)
    np.copyto(out, rounded, casting="same_kind")
    special = (bits & _INFINITE) == _INFINITE
    if special.any():
        out[special] = (bits[special] >> np.uint32(16)).astype(np.uint16)
        out[np.isnan(values)] = _NAN
    return out


def round_nf4(scaled: F32, random: U32, codes: U8) -> U8:
    """Round flat, finite values to NF4 codes, those outside -1 to 1 to the nearer end. random: 32 bits per element, of
    which the upper 24 decide."""
    values = NF4.values
    below = np.clip(np.searchsorted(values, scaled, side="right") - 1, 0, values.size - 2)
    fraction = (scaled - values[below]) / (values[1:] - values[:-1])[below]
    draw = (random >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    np.copyto(codes, below + (draw < fraction), casting="unsafe")
    return codes
