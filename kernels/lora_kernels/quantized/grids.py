"""Readers of weights that are codes with a grid of scales: (code - zero) * scale in float32.

Scales and zeros of a tensor are read once. Codes are read by rows; where they are packed along the rows of the
transposed matrix (GPTQ, AWQ), as many columns of it at once as the source holds cheaply.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from lora_kernels.checkpoint.sources import Source
from lora_kernels.numeric.blocks import Block
from lora_kernels.numeric.dtypes import F32, decode, storage
from lora_kernels.quantized.bits import AWQ_ORDER, U8, WORD, decode_rows, float8, row_bytes, unpack, unpack_awq
from lora_kernels.quantized.layout import Grid, Quantized, StoredPart
from lora_kernels.quantized.parts import reject

_AWQ: Final = len(AWQ_ORDER)
Zeros = npt.NDArray[np.int16]


class CodeRows(Protocol):
    """Codes of a weight as a matrix."""

    def read(self, r0: int, r1: int, out: F32) -> None:
        """Write the codes of rows to `out`, which has all columns."""


class StoredRows:
    """Codes stored row by row."""

    def __init__(self, known: Quantized, grid: Grid, source: Source) -> None:
        self._packed, self._source = known.packed, source
        self._codes, self._bits = grid.codes, grid.bits
        self._size = row_bytes(grid.codes, grid.bits, known.shape[-1])

    def read(self, r0: int, r1: int, out: F32) -> None:
        raw = np.empty((r1 - r0, self._size), np.uint8)
        at = self._packed.start + r0 * self._size
        self._source.read_into(self._packed.file, at, memoryview(raw.reshape(-1).data))
        decode_rows(raw, self._codes, self._bits, out)


class TurnedRows:
    """Codes stored as words of the transposed matrix: rows of the weight are columns of words.

    Holds the words of one range of rows, of which it makes any. Not for two threads.
    """

    def __init__(self, known: Quantized, grid: Grid, source: Source) -> None:
        self._packed, self._source, self._bits = known.packed, source, grid.bits
        self._awq = grid.codes == "awq"
        rows, columns = known.shape
        # Rows of the weight in a column of words, and the shape of the matrix of words.
        self._per_word = _AWQ if self._awq else 1
        self._width = rows // self._per_word
        self._height = columns if self._awq else columns * grid.bits // 32
        self._at_once = max(source.scattered // (4 * max(self._height, 1)), 1)
        self._first, self._words = 0, np.empty((self._height, 0), np.uint32)
        self._unpacked, self._codes = (0, 0), np.empty((0, columns), np.uint8)

    def read(self, r0: int, r1: int, out: F32) -> None:
        w0, w1 = r0 // self._per_word, -(-r1 // self._per_word)
        if self._awq:
            if (w0, w1) != self._unpacked:
                self._unpacked = w0, w1
                # Blocks of wide matrices are fewer rows than a word has.
                self._codes = np.ascontiguousarray(unpack_awq(self._held(w0, w1)).T)
            np.copyto(out, self._codes[r0 - w0 * _AWQ : r1 - w0 * _AWQ])
        else:
            raw = np.ascontiguousarray(self._held(w0, w1).T).view(np.uint8)
            decode_rows(raw, "bits", self._bits, out)

    def _held(self, w0: int, w1: int) -> npt.NDArray[np.uint32]:
        """The columns w0:w1 of the matrix of words."""
        if not self._first <= w0 <= w1 <= self._first + self._words.shape[1]:
            stop = min(max(w1, w0 + self._at_once), self._width)
            if self._words.shape[1] != stop - w0:
                self._words = np.empty((self._height, stop - w0), np.uint32)
            self._first = w0
            size, at = 4 * self._width, self._packed.start + 4 * w0
            for number, row in enumerate(self._words.view(np.uint8)):
                self._source.read_into(self._packed.file, at + number * size, memoryview(row.data))
        return self._words[:, w0 - self._first : w1 - self._first]


class UpwardRows:
    """Codes in words that run along the columns of the matrix: 32 rows are as many rows of words as a code has bits."""

    def __init__(self, known: Quantized, grid: Grid, source: Source) -> None:
        self._packed, self._source, self._bits = known.packed, source, grid.bits
        self._rows, self._columns = known.shape

    def read(self, r0: int, r1: int, out: F32) -> None:
        bits, size = self._bits, 4 * self._columns
        w0, w1 = r0 // WORD * bits, min(-(-r1 // WORD) * bits, self._rows * bits // WORD)
        words = np.empty((w1 - w0, self._columns), np.uint32)
        at = self._packed.start + w0 * size
        self._source.read_into(self._packed.file, at, memoryview(words.view(np.uint8).reshape(-1).data))
        first = r0 // WORD * WORD
        codes = unpack(np.ascontiguousarray(words.T), bits, r1 - first)
        np.copyto(out, codes[:, r0 - first :].T)


class Locked:
    """Codes that several readers share, so that what one read serves the next."""

    def __init__(self, rows: CodeRows) -> None:
        self._rows, self._lock = rows, threading.Lock()

    def read(self, r0: int, r1: int, out: F32) -> None:
        with self._lock:
            self._rows.read(r0, r1, out)


class Scales:
    """The grid of a weight."""

    def __init__(self, known: Quantized, grid: Grid, source: Source) -> None:
        self._grid = grid
        self._rows, self._columns = known.shape[-2:]
        self._high = grid.shape[0] // max(math.prod(known.shape[:-2]), 1)
        self._scales = self._stored(source, known.absmax)
        self._factor = _floats(source, grid.factor, "F32")[0] if grid.factor is not None else None
        self._zeros = _zeros(source, grid) if grid.zeros is not None else None
        self._up = grid.codes == "up"
        self._order = self._ordered(source, known.packed.name)

    def apply(self, r0: int, r1: int, codes: F32) -> None:
        """Turn the codes of rows into weights, in place."""
        grid, rows = self._grid, self._cells(r0, r1)
        scales = self._decoded(rows)
        zeros = self._zeros[rows].astype(np.float32) if self._zeros is not None else None
        if grid.zero:
            np.subtract(codes, np.float32(grid.zero), out=codes)
        wide = grid.shape[1]
        if self._order is not None and not self._up:
            if zeros is not None:
                np.subtract(codes, np.take(zeros, self._order, axis=1), out=codes)
            np.multiply(codes, np.take(scales, self._order, axis=1), out=codes)
            return
        # Cells are contiguous and even: a view with one more dimension instead of a copy of the scales.
        view = codes.reshape(len(codes), wide, -1)
        if zeros is not None:
            np.subtract(view, zeros[:, :, None], out=view)
        np.multiply(view, scales[:, :, None], out=view)

    def _cells(self, r0: int, r1: int) -> slice | npt.NDArray[np.intp]:
        """The rows of the grid of rows of the weight: one for each, or one for all."""
        height = self._grid.cell[0]
        if self._up and self._order is not None:
            return self._order[r0:r1]
        if self._grid.shape[0] == 1:
            return slice(0, 1)
        if height == 1:
            return slice(r0, r1)
        rows = np.arange(r0, r1)
        found: npt.NDArray[np.intp] = rows // self._rows * self._high + rows % self._rows // height
        return found

    def _stored(self, source: Source, part: StoredPart) -> npt.NDArray[Any]:
        grid = self._grid
        raw = _raw(source, part, np.uint8 if grid.scale in ("E4M3", "E8M0") else storage(grid.scale))
        return raw.reshape(grid.shape[::-1]).T if grid.turned else raw.reshape(grid.shape)

    def _decoded(self, rows: slice | npt.NDArray[np.intp]) -> F32:
        grid, stored = self._grid, self._scales[rows]
        if grid.scale in ("E4M3", "E8M0"):
            scales: F32 = float8(grid.scale)[stored]
        else:
            scales = decode(stored, grid.scale, np.empty(stored.shape, np.float32))
        if self._factor is not None:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                (np.divide if grid.divided else np.multiply)(scales, self._factor, out=scales)
        return scales

    def _ordered(self, source: Source, name: str) -> npt.NDArray[np.intp] | None:
        """The column of the grid of each column of the weight, or the row of each row; None if they are contiguous and
        even."""
        grid = self._grid
        columns, width, wide = (
            (self._rows, grid.cell[0], grid.shape[0]) if self._up else (self._columns, grid.cell[1], grid.shape[1])
        )
        contiguous = np.arange(columns, dtype=np.intp) // width
        order = contiguous
        if grid.order is not None:
            order = _raw(source, grid.order, np.dtype("<i4")).astype(np.intp)
            if order.size and order.min() == order.max() == -1:
                # As compressed-tensors initializes it: no order.
                order = contiguous
            if order.size and not 0 <= order.min() <= order.max() < wide:
                reject(name, f"has {grid.order.name} with numbers beyond its {wide} groups")
        even = width * wide == columns and np.array_equal(order, contiguous)
        return None if even else order


class GridWeights:
    """A weight of codes and a grid. For one thread."""

    def __init__(self, known: Quantized, rows: CodeRows, scales: Scales) -> None:
        self._columns = known.shape[-1]
        self._rows, self._scales = rows, scales

    @classmethod
    def open(cls, known: Quantized, source: Source) -> Callable[[], GridWeights]:
        """Read the scales. Raises RegistryError `rejected` for an order of columns that is none."""
        grid = known.grid
        assert grid is not None
        scales = Scales(known, grid, source)
        if grid.codes == "up":
            return lambda: cls(known, UpwardRows(known, grid, source), scales)
        if grid.codes not in ("down", "awq"):
            return lambda: cls(known, StoredRows(known, grid, source), scales)
        if source.windowed:
            return partial(cls, known, Locked(TurnedRows(known, grid, source)), scales)
        return lambda: cls(known, TurnedRows(known, grid, source), scales)

    def read(self, block: Block, out: F32) -> F32:
        flat, columns = out.reshape(-1), self._columns
        first, done = block.first, 0
        while done < flat.size:
            row, column = divmod(first + done, columns)
            if column == 0 and flat.size - done >= columns:
                whole = (flat.size - done) // columns
                self._read(row, row + whole, flat[done : done + whole * columns].reshape(whole, columns))
                done += whole * columns
                continue
            count = min(columns - column, flat.size - done)
            values = np.empty((1, columns), np.float32)
            self._read(row, row + 1, values)
            flat[done : done + count] = values[0, column : column + count]
            done += count
        return out

    def _read(self, r0: int, r1: int, out: F32) -> None:
        self._rows.read(r0, r1, out)
        self._scales.apply(r0, r1, out)


def _zeros(source: Source, grid: Grid) -> Zeros:
    """The zeros, one for each cell."""
    part, (rows, columns) = grid.zeros, grid.shape
    assert part is not None
    if grid.zero_codes == "int8":
        return _raw(source, part, np.dtype("i1")).reshape(rows, columns).astype(np.int16)
    words = _raw(source, part, np.dtype("<u4"))
    step = grid.zero_step
    if step and WORD % grid.bits == 0:
        # Writers subtract from whole words: a zero of 0 borrowed from the next one in its word.
        words, step = words + np.uint32(0xFFFFFFFF // ((1 << grid.bits) - 1) * step), 0
    if grid.zero_codes == "awq":
        found: U8 = unpack_awq(words.reshape(columns, -1)).T
    elif grid.zero_codes == "along":
        found = unpack(words.reshape(rows, -1), grid.bits, columns)
    elif grid.zero_codes == "bits":
        found = unpack(words.reshape(columns, -1), grid.bits, rows).T
    else:
        found = unpack(np.ascontiguousarray(words.reshape(-1, columns).T), grid.bits, rows).T
    stepped: Zeros = (found.astype(np.int16) + step) & ((1 << grid.bits) - 1)
    return stepped


def _floats(source: Source, part: StoredPart, dtype: str) -> F32:
    raw = _raw(source, part, storage(dtype))
    return decode(raw, dtype, np.empty(raw.shape, np.float32))


def _raw(source: Source, part: StoredPart, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    raw = bytearray(part.end - part.start)
    source.read_into(part.file, part.start, memoryview(raw))
    return np.frombuffer(raw, dtype)
