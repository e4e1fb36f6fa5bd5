"""Seeded stochastic rounding: to one of the two neighbours, each as likely as it is near, so that what is smaller than
a step survives in the mean. The random bits are those of `lora_kernels.rng`, by tensor and element.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from lora_kernels.quantized.codes import F32, U8, Array, Codebook

U32 = npt.NDArray[np.uint32]
BF16_NAN: Final = 0x7FC0
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
        out[np.isnan(values)] = BF16_NAN
    return out


def between(scaled: F32, codebook: Codebook, random: U32, codes: U8) -> U8:
    """Codes of flat values between -1 and 1. random: 32 bits per element, of which the upper 24 decide."""
    values = codebook.values[codebook.order]
    below = np.searchsorted(values, scaled, side="right") - 1
    np.clip(below, 0, 14, out=below)
    low, step = values[below], (values[1:] - values[:-1])[below]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(step > 0, (scaled - low) / step, np.float32(0))
    draw = (random >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    np.take(codebook.order, below + (draw < share), out=codes, mode="clip")
    return codes
