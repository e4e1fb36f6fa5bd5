"""The inner loop of a merge in C, where the package was built with a C compiler; else numpy does the same.

Why there is C at all: docs/decisions/0008.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LIBRARY = Path(__file__).with_name("add_round.so")

AddRound = Callable[[memoryview, npt.NDArray[np.float32], np.float32, memoryview, npt.NDArray[np.float64]], bool]


@cache
def add_round_bf16() -> AddRound | None:
    """(weight, product, scale, out, sums) -> finite: out = round(weight + scale * product), once, to nearest even.

    weight, out: bytes of bfloat16 elements, out writable. product: float32, contiguous, as many elements. sums: four
    float64: <dW, dW>, <realised, dW> and <realised, realised> are added to the first three, the last is raised to the
    largest |dW|. False where a value is not finite; then out and sums mean nothing. None where there is no library.
    """
    try:
        function = ctypes.CDLL(str(LIBRARY)).lora_add_round_bf16
    except (OSError, AttributeError):
        return None
    pointer = ctypes.c_void_p
    function.argtypes = [pointer, pointer, ctypes.c_float, pointer, ctypes.c_size_t, pointer]
    function.restype = ctypes.c_int

    def call(
        weight: memoryview,
        product: npt.NDArray[np.float32],
        scale: np.float32,
        out: memoryview,
        sums: npt.NDArray[np.float64],
    ) -> bool:
        count = product.size
        if not (
            weight.nbytes == out.nbytes == 2 * count
            and product.flags.c_contiguous
            and product.dtype == np.float32
            and sums.dtype == np.float64
            and sums.size == 4
        ):
            raise ValueError("weight, product, out and sums do not fit each other")
        return bool(function(_at(weight), product.ctypes.data, scale, _at(out), count, sums.ctypes.data))

    return call


def _at(view: memoryview) -> Any:
    return np.frombuffer(view, np.uint8).ctypes.data
