"""Seeded stochastic rounding: to one of the two neighbours, each as likely as it is near, so that what is smaller than
a step survives in the mean. The random bits are those of `lora_kernels.numeric.philox`, by tensor and element.
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
    """float32 `values` rounded to bf16 (uint16, same shape). random: 32 bits per element, of which the upper 16 decide.

    What bf16 holds exactly stays as it is. Infinity stays infinity, NaN becomes 0x7FC0; the largest numbers may round
    to infinity, as numbers between two others do.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    # A carry out of the lower half has the probability that this half, as a fraction, says.
    rounded = (bits + (random.reshape(bits.shape) >> np.uint32(16))) >> np.uint32(16)
    np.copyto(out, rounded, casting="same_kind")
    special = (bits & _INFINITE) == _INFINITE
    if special.any():
        out[special] = (bits[special] >> np.uint32(16)).astype(np.uint16)
        out[np.isnan(values)] = _NAN
    return out


def between(scaled: F32, random: U32, codes: U8) -> U8:
    """NF4 codes of flat, finite values; what lies outside -1 to 1 takes the code of the end. random: 32 bits per
    element, of which the upper 24 decide."""
    values = NF4.values
    below = np.clip(np.searchsorted(values, scaled, side="right") - 1, 0, values.size - 2)
    share = (scaled - values[below]) / (values[1:] - values[:-1])[below]
    draw = (random >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    np.copyto(codes, below + (draw < share), casting="unsafe")
    return codes
