"""Tensors of an adapter in memory, and the few operations that conversions need. Standard library only.

The client has no numpy. Slices of `array` with a step transpose a matrix at the speed of C.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from typing import Final

import msgspec

from lora_contract.errors import RegistryError
from lora_contract.tensors import DTYPE_BYTES, MAX_ADAPTER_HEADER_BYTES, header_length, parse_header, write_header

MAX_BYTES: Final = 4 << 30
"""Of a file that is converted, which is held in memory."""
_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """dtype: as in safetensors. data: little-endian, C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def transposed(self) -> Tensor:
        """The transpose of a matrix. Raises RegistryError `rejected` for another number of dimensions."""
        if len(self.shape) != 2:
            raise refused(f"a tensor has the shape {list(self.shape)}, expected a matrix")
        rows, columns = self.shape
        width = DTYPE_BYTES[self.dtype]
        values = array(_CODES[width])
        if values.itemsize != width:
            raise refused(f"this machine has no integers of {width} bytes")
        values.frombytes(self.data)
        turned = array(values.typecode, bytes(len(self.data)))
        # The shorter side is the rank: one slice for each.
        if rows <= columns:
            for row in range(rows):
                turned[row::rows] = values[row * columns : (row + 1) * columns]
        else:
            for column in range(columns):
                turned[column * rows : (column + 1) * rows] = values[column::columns]
        return Tensor(self.dtype, (columns, rows), turned.tobytes())

    def reshaped(self, *shape: int) -> Tensor:
        """The same data under another shape of as many elements."""
        return Tensor(self.dtype, shape, self.data)

    def rows(self, start: int, stop: int) -> Tensor:
        """The part of the first dimension between two indices."""
        size = len(self.data) // self.shape[0] if self.shape and self.shape[0] else 0
        return Tensor(self.dtype, (stop - start, *self.shape[1:]), self.data[start * size : stop * size])

    def followed_by(self, other: Tensor) -> Tensor:
        """This tensor and another of the same dtype, along the first dimension."""
        return Tensor(self.dtype, (self.shape[0] + other.shape[0], *self.shape[1:]), self.data + other.data)

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    def number(self) -> float:
        """The value of a tensor of one element. Raises RegistryError `rejected` for another tensor."""
        if self.elements != 1:
            raise refused(f"a tensor has the shape {list(self.shape)}, expected one number")
        if self.dtype == "BF16":
            return float(struct.unpack("<f", b"\0\0" + self.data)[0])
        code = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "U8": "B", "I8": "b"}.get(
            self.dtype
        )
        if code is None:
            raise refused(f"a number has the dtype {self.dtype}")
        return float(struct.unpack(f"<{code}", self.data)[0])


def load(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parse a safetensors file: its tensors by name, and its metadata. Raises RegistryError `rejected`."""
    header = parse_header(data[: 8 + header_length(data[:8], len(data), MAX_ADAPTER_HEADER_BYTES)], len(data))
    tensors = {
        entry.name: Tensor(entry.dtype, entry.shape, data[entry.file_start : entry.file_end])
        for entry in header.tensors
    }
    return tensors, header.metadata


def dump(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode tensors as a safetensors file, by name: the same tensors give the same bytes."""
    names = sorted(tensors)
    about = {"format": "pt", **(metadata or {})}
    header = write_header([(name, tensors[name].dtype, tensors[name].shape) for name in names], about)
    return b"".join([header, *(tensors[name].data for name in names)])


def refused(why: str, *, hint: str | None = None) -> RegistryError:
    """The error of an adapter that cannot be converted exactly."""
    return RegistryError(
        "rejected",
        f"The adapter cannot be converted: {why}.",
        hint=hint or "Convert it with the program that wrote it, and import the result.",
    )
