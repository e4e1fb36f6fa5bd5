"""A tensor viewed as a matrix, split into blocks whose buffers fit into a core's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

# Elements per block: its four float32 buffers fit into a core's cache. Writes of 128 to 256 KiB were measured to be
# five to ten times as fast as writes of megabytes.
BLOCK: Final = 1 << 16


class Block(NamedTuple):
    """Rows r0:r1 and columns c0:c1 of a matrix of `columns` columns: whole rows, or a part of one row."""

    r0: int
    r1: int
    c0: int
    c1: int
    columns: int

    @property
    def first(self) -> int:
        """Index of the first element in the tensor; the elements are contiguous."""
        return self.r0 * self.columns + self.c0

    @property
    def shape(self) -> tuple[int, int]:
        return self.r1 - self.r0, self.c1 - self.c0

    @property
    def elements(self) -> int:
        return (self.r1 - self.r0) * (self.c1 - self.c0)


def matrix(shape: tuple[int, ...], columns: int | None = None) -> tuple[int, int]:
    """(rows, columns) of a tensor: the first dimension and the product of the others; a vector or scalar is one row."""
    elements = math.prod(shape)
    if columns is None:
        columns = math.prod(shape[1:]) if len(shape) > 1 else elements
    return (elements // columns, columns) if columns else (0, 0)


def block_rows(columns: int, *, row_group: int = 0) -> int:
    """Rows per block; 0 if a block is a part of one row. row_group: number of consecutive rows that stay in one block;
    0 if a row may be split."""
    rows = BLOCK // columns if columns else 1
    return max(rows // row_group, 1) * row_group if row_group else rows


def blocks(r0: int, r1: int, columns: int, *, row_group: int = 0) -> Iterator[Block]:
    """The blocks of the rows r0:r1, in byte order. r0: a multiple of `block_rows`, so that the blocks of a matrix do
    not depend on how its rows are split into tasks."""
    step = block_rows(columns, row_group=row_group)
    if not columns:
        return
    if step:
        for row in range(r0, r1, step):
            yield Block(row, min(row + step, r1), 0, columns, columns)
        return
    for row in range(r0, r1):
        for column in range(0, columns, BLOCK):
            yield Block(row, row + 1, column, min(column + BLOCK, columns), columns)
