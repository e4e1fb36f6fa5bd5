"""The tensors that a checkpoint stores for a quantized weight.

Of bitsandbytes: a 4-bit weight `W` consists of `W` (the codes), `W.absmax`, `W.quant_map`, with double quantization
`W.nested_absmax` and `W.nested_quant_map`, and `W.quant_state.bitsandbytes__nf4` (or fp4), which is JSON. An int8
weight consists of `M.weight` and `M.SCB`, sometimes `M.weight_format`. All other formats are codes with a grid of
scales (`Grid`).
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, Literal

import msgspec

from lora_contract.tensors import DTYPE_BYTES, DTYPE_NAMES
from lora_kernels.quantized.blocksizes import NESTED_BLOCKSIZE

_LONG_NAMES: Final = {short: name for name, short in DTYPE_NAMES.items()}
# No float64 has a longer decimal representation.
_LONGEST_NUMBER: Final = -2.2250738585072014e-308

Entry = tuple[str, str, tuple[int, ...]]


class StoredPart(msgspec.Struct, frozen=True):
    """A tensor that is part of a quantized weight. start, end: its byte range in the file, header included."""

    name: str
    dtype: str
    file: str
    start: int
    end: int


class NestedParts(msgspec.Struct, frozen=True):
    """The parts of double quantization. values: the 256 numbers of its codes. offset: the mean of the absmax."""

    absmax: StoredPart
    values: StoredPart
    blocksize: int
    offset: float


Codes = Literal["bits", "words", "down", "up", "awq", "int8", "e4m3", "e5m2", "e2m1"]
Scale = Literal["F32", "F16", "BF16", "E4M3", "E8M0"]


class Grid(msgspec.Struct, frozen=True, omit_defaults=True):
    """What makes a weight of codes: (code - zero) * scale, with a scale and a zero for each cell of a grid.

    Args:
        codes: how they are stored. `bits`: a stream of bits along each row, lowest first. `words`: as many whole codes
            as a word of 32 bits holds. `down`: a stream of bits along each column of the transposed matrix (GPTQ).
            `up`: one along each column of the matrix itself, which is stored as (in, out).
            `awq`: eight interleaved codes a word of the transposed matrix. `e2m1`: two a byte, the first in the low
            half. The others: one a byte.
        bits: of a code.
        cell: rows and columns of a cell.
        shape: of the grid: rows and columns. A weight of several matrices has them below each other.
        scale: dtype of the scales.
        turned: scales are stored as (columns, rows).
        zero: subtracted from every code.
        zeros: further zeros, one for each cell; None for none.
        zero_codes: how zeros are stored: `int8`; `bits` along the rows in a matrix (columns, rows); `down` along the
            rows in a matrix (rows, columns); `along` the columns in a matrix (rows, columns); `awq`.
        zero_step: added to every stored zero.
        order: the column of the grid of each column of the weight, or with `up` the row of each row; None if cells are
            contiguous.
        factor: one number by which all scales are multiplied, or divided if `divided`.
    """

    codes: Codes
    bits: int
    cell: tuple[int, int]
    shape: tuple[int, int]
    scale: Scale
    turned: bool = False
    zero: int = 0
    zeros: StoredPart | None = None
    zero_codes: Literal["int8", "bits", "down", "along", "awq"] = "int8"
    zero_step: int = 0
    order: StoredPart | None = None
    factor: StoredPart | None = None
    divided: bool = False


class Quantized(msgspec.Struct, frozen=True):
    """A quantized weight of a base. scheme: `nf4`, `fp4` or `int8` of bitsandbytes, or a format with a `grid`. shape,
    dtype: of the weight before quantization.

    packed: the codes. absmax: one number per block, or per row for int8; 8-bit codes if `nested` is given; the scales
    of a grid. values: the 16 numbers of the codes. blocksize: in elements; 0 for int8 and grids. others: names of
    tensors without further information, which the dequantized model does not have.
    """

    scheme: str
    shape: tuple[int, ...]
    dtype: str
    packed: StoredPart
    absmax: StoredPart
    blocksize: int = 0
    values: StoredPart | None = None
    nested: NestedParts | None = None
    others: tuple[str, ...] = ()
    grid: Grid | None = None

    @property
    def names(self) -> frozenset[str]:
        """The names of its tensors in the file."""
        parts = [self.packed, self.absmax]
        parts += [self.values] if self.values is not None else []
        parts += [self.nested.absmax, self.nested.values] if self.nested is not None else []
        if self.grid is not None:
            parts += [part for part in (self.grid.zeros, self.grid.order, self.grid.factor) if part is not None]
        return frozenset([*(part.name for part in parts), *self.others])


class Nf4Form(msgspec.Struct, frozen=True):
    """Format of a weight written as NF4. dtype: after dequantizing. nested: double quantization. storage: dtype of the
    tensor of codes."""

    dtype: str = "BF16"
    blocksize: int = 64
    nested: bool = True
    storage: str = "U8"


def nf4_entries(name: str, shape: tuple[int, ...], form: Nf4Form) -> list[Entry]:
    """The tensors of a weight written as NF4, in byte order: scales first, the codes last, at a multiple of 8 bytes."""
    count = math.prod(shape)
    blocks = -(-count // form.blocksize)
    entries: list[Entry] = [(f"{name}.quant_map", "F32", (16,))]
    if form.nested:
        entries.append((f"{name}.nested_absmax", "F32", (-(-blocks // NESTED_BLOCKSIZE),)))
        entries.append((f"{name}.nested_quant_map", "F32", (256,)))
    entries.append((f"{name}.absmax", "U8" if form.nested else "F32", (blocks,)))
    used = entries_size(entries) + len(_state(shape, form, _LONGEST_NUMBER))
    entries.append((f"{name}.quant_state.bitsandbytes__nf4", "U8", (used + -used % 8 - entries_size(entries),)))
    entries.append((name, form.storage, (-(-count // 2) // DTYPE_BYTES[form.storage], 1)))
    return entries


def entries_size(entries: list[Entry]) -> int:
    """The size in bytes."""
    return sum(math.prod(shape) * DTYPE_BYTES[dtype] for _, dtype, shape in entries)


def nf4_state(shape: tuple[int, ...], form: Nf4Form, offset: float, size: int) -> bytes:
    """The JSON of `quant_state`, padded with spaces to `size`. offset: of double quantization."""
    return _state(shape, form, offset).ljust(size)


def _state(shape: tuple[int, ...], form: Nf4Form, offset: float) -> bytes:
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": form.blocksize,
        "dtype": _LONG_NAMES[form.dtype],
        "shape": list(shape),
    }
    if form.nested:
        state |= {"nested_blocksize": NESTED_BLOCKSIZE, "nested_dtype": "float32", "nested_offset": offset}
    return json.dumps(state).encode()
