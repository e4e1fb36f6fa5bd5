"""Factors of all jobs of a launch in the order of `fragments`, by two kernels: one for all A, one for all B.

A copy of each factor by torch would take a dozen launches a matrix, in sum longer than the merge itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from lora_kernels.ops import aot
from lora_kernels.ops.configs import ARRANGE
from lora_kernels.ops.launch import ELEMENTS, on, options, upload
from lora_kernels.ops.rounding import load, rounded, widen

# Fields of a factor, int64: address in bytes, sizes and strides in elements; of the result the address of its first
# block or group, their distance and their number.
FIELDS: Final = ("address", "rows", "columns", "row", "column", "out", "pitch", "parts")
ADDRESS = tl.constexpr(FIELDS.index("address"))
ROWS = tl.constexpr(FIELDS.index("rows"))
COLUMNS = tl.constexpr(FIELDS.index("columns"))
ROW = tl.constexpr(FIELDS.index("row"))
COLUMN = tl.constexpr(FIELDS.index("column"))
OUT = tl.constexpr(FIELDS.index("out"))
PITCH = tl.constexpr(FIELDS.index("pitch"))
PARTS = tl.constexpr(FIELDS.index("parts"))
_FIELDS = tl.constexpr(len(FIELDS))


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Factors in the order of `fragments`: all adapters of a job have one rank, a multiple of 16, filled with zeros.

    Args:
        rank: of each adapter, at least its own.
        rows: of a block of W.
        width: columns of a group.
        slice_rank: rank that the kernel multiplies at once, at most 64; it divides the rank.
        groups: A is filled up to a multiple of so many groups.
        planes: 3 to store a float32 factor as three matrices of bf16 whose sum it is, the largest first, one after
            another. Elements below 2^-110 lose bits, and infinite ones become NaN.
    """

    rank: int
    rows: int
    width: int
    slice_rank: int
    groups: int = 1
    planes: int = 1


@triton.jit
def arrange_kernel(
    factors: tl.tensor,
    SOURCE: tl.constexpr,
    FACTOR: tl.constexpr,
    PLANES: tl.constexpr,
    IS_A: tl.constexpr,
    SIDE: tl.constexpr,
    SLICE: tl.constexpr,
) -> None:
    """Program (block or group, factor, slice of the rank). factors: int64 (factors, len(FIELDS)). SIDE: columns of a
    group of A, or rows of a block of B."""
    i_part, i_slice = tl.program_id(0), tl.program_id(2)
    factor = factors + tl.program_id(1) * _FIELDS
    if i_part >= tl.load(factor + PARTS):
        return
    o_side = i_part.to(tl.int64) * SIDE + tl.arange(0, SIDE)
    o_rank = i_slice * SLICE + tl.arange(0, SLICE)
    if IS_A:
        o_rows, o_columns = o_rank.to(tl.int64)[:, None], o_side[None, :]
    else:
        o_rows, o_columns = o_side[:, None], o_rank.to(tl.int64)[None, :]
    mask = (o_rows < tl.load(factor + ROWS)) & (o_columns < tl.load(factor + COLUMNS))
    offsets = o_rows * tl.load(factor + ROW) + o_columns * tl.load(factor + COLUMN)
    b_left = widen(load(tl.load(factor + ADDRESS), offsets, mask, SOURCE, False), SOURCE)

    k = tl.arange(0, SLICE)
    s = tl.arange(0, SIDE)
    # rank = (unit, k3, k2 k1, k0), rows = (unit, m3, m2 m1 m0), columns = (n2 n1, n4, n3, n0): see `fragments`.
    k_place = (k % 8 // 2) * 8 + k % 2
    if IS_A:
        k_place += (k // 16) * (SIDE * 16) + (k // 8 % 2) * 2
        if SIDE == 32:
            s_place = (s // 4 % 2) * 256 + (s // 8 * 2 + s % 2) * 32 + (s // 2 % 2) * 4
        else:
            s_place = (s // 4 * 2 + s % 2) * 32 + (s // 2 % 2) * 4
        places = k_place[:, None] + s_place[None, :]
    else:
        k_place += (k // 16) * 256 + (k // 8 % 2) * 4
        s_place = (s // 16) * (SLICE * 16) + (s % 8) * 32 + (s // 8 % 2) * 2
        places = s_place[:, None] + k_place[None, :]
    p_out = tl.load(factor + OUT).to(tl.pointer_type(tl.uint16 if FACTOR == tl.bfloat16 else FACTOR))
    p_out += i_part.to(tl.int64) * tl.load(factor + PITCH) + i_slice * (SLICE * SIDE)
    rank = tl.num_programs(2) * SLICE
    for i_plane in tl.static_range(PLANES):
        b_plane = rounded(b_left, FACTOR)
        tl.store(p_out + i_plane * (rank * SIDE) + places, b_plane)
        b_left -= widen(b_plane, FACTOR)


def arrange(
    jobs: Sequence[Sequence[tuple[Tensor, Tensor]]], dtype: torch.dtype, arrangement: Arrangement, device: torch.device
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """B (blocks, adapters * planes, rank * rows) and A (groups, adapters * planes, rank * width) of each job, and the
    tensors that own the memory that the kernels read.

    Args:
        jobs: (B, A) of each adapter of each job; a job without one gets empty tensors.
        dtype: of the factors; float32 if they are to become planes.
        device: of the factors.
    """
    count, rank = arrangement.planes, arrangement.rank
    step = arrangement.width * arrangement.groups
    shapes: list[tuple[int, int, int]] = []
    for pairs in jobs:
        rows, columns = (pairs[0][0].shape[0], pairs[0][1].shape[1]) if pairs else (0, 0)
        shapes += [
            (-(-rows // arrangement.rows), len(pairs) * count, rank * arrangement.rows),
            (-(-columns // step) * arrangement.groups, len(pairs) * count, rank * arrangement.width),
        ]
    sizes = [math.prod(shape) for shape in shapes]
    memory = torch.empty(sum(sizes), dtype=torch.bfloat16 if count > 1 else dtype, device=device)
    parts = [part.view(shape) for part, shape in zip(torch.split(memory, sizes), shapes, strict=True)]
    found = list(zip(parts[::2], parts[1::2], strict=True))
    given = [[(b.to(dtype), a.to(dtype)) for b, a in pairs] for pairs in jobs]
    for is_a in (False, True):
        table = [
            [
                pair[is_a].data_ptr(), *pair[is_a].shape, *pair[is_a].stride(),
                out[is_a].data_ptr() + index * count * out[is_a].shape[2] * memory.itemsize,
                out[is_a].stride(0), out[is_a].shape[0],
            ]
            for pairs, out in zip(given, found, strict=True)
            for index, pair in enumerate(pairs)
        ]  # fmt: skip
        _launch(table, constants(dtype, arrangement, is_a=is_a), rank // arrangement.slice_rank, device)
    return found, [memory, *(factor for pairs in given for pair in pairs for factor in pair)]


def _launch(table: list[list[int]], constants: dict[str, Any], slices: int, device: torch.device) -> None:
    parts = max((row[-1] for row in table), default=0)
    if parts:
        with on(device):
            arrange_kernel[(parts, len(table), slices)](
                upload(table, torch.int64, device), **constants, **options(ARRANGE)
            )


def constants(dtype: torch.dtype, arrangement: Arrangement, *, is_a: bool) -> dict[str, Any]:
    """The compile-time arguments. dtype: of the factors as given."""
    return {
        "SOURCE": ELEMENTS[dtype],
        "FACTOR": ELEMENTS[torch.bfloat16 if arrangement.planes > 1 else dtype],
        "PLANES": arrangement.planes,
        "IS_A": is_a,
        "SIDE": arrangement.width if is_a else arrangement.rows,
        "SLICE": arrangement.slice_rank,
    }


def variants() -> list[aot.Variant]:
    """Factors of bf16, and of float32 as planes."""
    return [
        aot.Variant(
            name=f"arrange {'A' if is_a else 'B'} of {ELEMENTS[dtype]}, rank {rank}",
            kernel=arrange_kernel,
            types={"factors": "*i64"},
            constants=constants(dtype, arrangement, is_a=is_a),
            config=ARRANGE,
            elements=rank * (arrangement.width if is_a else arrangement.rows),
            offset_bits=32,
        )
        for dtype, rank, planes in ((torch.bfloat16, 16, 1), (torch.float32, 64, 3))
        for arrangement in (Arrangement(rank, rows=32, width=32, slice_rank=rank, planes=planes),)
        for is_a in (True, False)
    ]
