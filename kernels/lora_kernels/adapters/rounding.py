"""Factors as they will be stored, for errors that are exact for the file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lora_kernels.numeric.dtypes import F32, decode, encode, storage


def stored_values(values: npt.NDArray[np.float64], dtype: str) -> F32:
    """Round values to `dtype` (BF16, F16, F32), as an `AdapterWriter` of that dtype stores them.

    Overflow gives infinity here; the writer refuses it.
    """
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, np.float32)
    return decode(encode(narrow, dtype, np.empty(narrow.shape, storage(dtype))), dtype, np.empty_like(narrow))
