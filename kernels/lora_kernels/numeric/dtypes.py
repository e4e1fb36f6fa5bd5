"""Conversion of checkpoint dtypes to float32 and back, each with at most one rounding (to nearest, ties to even).

Names are those of safetensors: BF16, F16, F32, F64. bfloat16 has no numpy dtype; uint16 represents it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lora_contract.errors import RegistryError

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# The representation of an element in memory. Checkpoints are little-endian on every machine.
STORAGE: Final[dict[str, np.dtype[Any]]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
# Dtypes of indices in an adapter.
INTEGERS: Final[dict[str, np.dtype[Any]]] = {
    "U8": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
BF16_NAN: Final = 0x7FC0


def storage(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that represents `dtype`. Raises RegistryError `unsupported` for other dtypes."""
    try:
        return STORAGE[dtype]
    except KeyError:
        raise RegistryError(
            "unsupported", f"Tensors of dtype {dtype} cannot be merged; expected {', '.join(STORAGE)}."
        ) from None


def decode(raw: Array, dtype: str, out: F32) -> F32:
    """Convert stored elements (`storage(dtype)`, any shape) to float32, written to `out` of the same shape.

    Exact for BF16, F16 and F32, one rounding for F64.
    """
    if dtype == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, raw)
        np.left_shift(bits, 16, out=bits)
    else:
        with np.errstate(over="ignore"):
            np.copyto(out, raw, casting="same_kind")
    return out


def encode(values: F32, dtype: str, out: Array, scratch: npt.NDArray[np.uint32] | None = None) -> Array:
    """Round float32 `values` once to `dtype`, written to `out` (`storage(dtype)`, same shape).

    Overflow gives infinity, as in IEEE 754; NaN stays NaN. scratch: contiguous, at least as many elements as `values`,
    overwritten; None to allocate it.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == "BF16":
            _encode_bf16(values, out, scratch)
        else:
            np.copyto(out, values, casting="same_kind")
    return out


def _encode_bf16(values: F32, out: Array, scratch: npt.NDArray[np.uint32] | None) -> None:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = np.empty(bits.shape, np.uint32) if scratch is None else scratch[: bits.size].reshape(bits.shape)
    # Adding 0x7fff, and one more if the kept half is odd, carries into the kept half exactly when nearest-even rounds
    # up.
    np.right_shift(bits, 16, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.add(rounded, 0x7FFF, out=rounded)
    np.right_shift(rounded, 16, out=rounded)
    np.copyto(out, rounded, casting="same_kind")
    # A sum of squares is NaN exactly when an element is: a cheap test that avoids a mask in the usual case.
    flat = values.reshape(-1)
    if np.isnan(np.dot(flat, flat)):
        out[np.isnan(values)] = BF16_NAN
