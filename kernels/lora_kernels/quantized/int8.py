"""LLM.int8 (Dettmers et al., arXiv 2208.07339): rows of int8 with their absolute maxima (SCB), w = code * SCB / 127."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from lora_kernels.quantized.codes import F32

I8 = npt.NDArray[np.int8]
# The reciprocal of 127 in bitsandbytes.
UNIT: Final = np.float32(7.874015718698502e-3)


def dequantize(codes: I8, scb: F32, out: F32) -> F32:
    """Dequantize codes (rows, columns) with scb (rows,) into `out` of the same shape. Two float32 products, as in
    bitsandbytes."""
    np.multiply(codes, scb[:, None], out=out, dtype=np.float32)
    return np.multiply(out, UNIT, out=out)
