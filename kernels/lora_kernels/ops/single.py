"""One matrix and its adapters, laid out for kernels that walk along blocks of rows (`fragments`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from lora_kernels.ops import tables
from lora_kernels.ops.arrange import Arrangement, arrange
from lora_kernels.ops.fragments import UNIT, factor_pointer, in_columns, load_a, load_b, multiply
from lora_kernels.ops.launch import ELEMENTS, upload
from lora_kernels.ops.low_rank import LowRank

# Rows of a block: of one warp.
ROWS: Final = 16
# Columns of a group.
WIDTH: Final = 32
# Ranks above it take more registers than one warp has.
MOST_RANK: Final = 128
_MOST_SLICE: Final = 64
# Kernels may count elements in 32 bits.
MOST_ELEMENTS: Final = 2**31
_HALF: Final = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Single:
    """Rows of w and out are contiguous and aligned; both are transposed if they were stored by columns.

    Args:
        a, b: of all adapters, of `arrange`.
        scales: float32 (adapters,).
        rank: of all adapters, filled with zeros; 16 times a power of two.
        row_stride: distance of two rows in the numbers of elements; those of a row follow each other. None if the
            matrix was transposed.
        keep: tensors that own memory which launches read.
    """

    w: Tensor
    out: Tensor
    a: Tensor
    b: Tensor
    scales: Tensor
    rank: int
    row_stride: int | None
    keep: tuple[Tensor, ...]

    @property
    def blocks(self) -> int:
        return -(-self.w.shape[0] // ROWS)

    @property
    def groups(self) -> int:
        return -(-self.w.shape[1] // WIDTH)

    def arguments(self) -> tuple[int | Tensor, ...]:
        """The first arguments of kernels on a single matrix. Numbers that are multiples of 8 are passed as eighths: a
        compiler's hint on an argument would be lost."""
        rows, columns = self.w.shape
        return (
            self.w.data_ptr(), self.out.data_ptr(), self.a.data_ptr(), self.b.data_ptr(), self.scales,
            rows, columns // 8, self.w.stride(0) // 8, self.out.stride(0) // 8,
        )  # fmt: skip

    def constants(self) -> dict[str, Any]:
        """The compile-time arguments of kernels on a single matrix."""
        return constants(self.w.dtype, self.out.dtype, self.a.dtype, rank=self.rank)


# The types of `Single.arguments`, in Triton's notation.
TYPES: Final = {
    "w": "i64", "out": "i64", "a": "i64", "b": "i64", "scales": "*fp32",
    "rows": "i32", "column_eighths": "i32", "w_eighths": "i64", "out_eighths": "i64",
}  # fmt: skip
# Of these no value is worth a compilation of its own.
PLAIN: Final = ("w", "out", "a", "b", "rows", "column_eighths", "w_eighths", "out_eighths")


def constants(w: torch.dtype, out: torch.dtype, factor: torch.dtype, *, rank: int) -> dict[str, Any]:
    return {"ELEMENT": ELEMENTS[w], "OUTPUT": ELEMENTS[out], "FACTOR": ELEMENTS[factor], "RANK": rank}


def single(
    w: Tensor, out: Tensor, adapters: Sequence[LowRank], *, most: int, unroll: int = 1, transpose: bool = True
) -> Single | None:
    """Lay out a matrix; None if it is not aligned or an element, of w, out or a factor, has not 16 bits, if there are
    more than `most` adapters, or ranks that are too high. adapters: none of rank 0. unroll: A is filled up to a
    multiple of as many groups. transpose: False if a kernel must not transpose the matrix."""
    swap = transpose and w.stride(1) != 1 and w.stride(0) == 1
    if swap:
        w, out = w.T, out.T
    pairs = [(adapter.a.T, adapter.b.T) if swap else (adapter.b, adapter.a) for adapter in adapters]
    factors = {factor.dtype for pair in pairs for factor in pair}
    highest = max((adapter.rank for adapter in adapters), default=0)
    rank = max(UNIT, 1 << (highest - 1).bit_length())
    fits = (
        0 < len(adapters) <= most
        and 0 < highest
        and rank <= MOST_RANK
        and len(factors) == 1
        and {w.dtype, out.dtype, *factors} <= set(_HALF)
        and tables.is_aligned(w)
        and tables.is_aligned(out)
        and 0 < w.numel() < MOST_ELEMENTS
        # Offsets in factors have 32 bits.
        and (max(w.shape) + unroll * WIDTH) * len(adapters) * rank < 2**31
    )
    if not fits:
        return None
    # Of blocks of 16 rows, slices follow each other as the whole rank does.
    order = Arrangement(rank, rows=ROWS, width=WIDTH, slice_rank=min(rank, _MOST_SLICE), groups=unroll)
    ((b, a),), keep = arrange([pairs], factors.pop(), order, w.device)
    return Single(
        w, out, a, b,
        scales=upload([adapter.scale for adapter in adapters], torch.float32, w.device),
        rank=rank,
        row_stride=None if swap else w.shape[1],
        keep=tuple(keep),
    )  # fmt: skip


@triton.jit
def offsets_of(i_block: tl.tensor, eighths: tl.tensor, start: tl.tensor) -> tl.tensor:
    """Offsets of a block's group of columns that starts at `start`, int64 (16, 32). eighths: of a row's stride."""
    o_rows = (i_block * 16 + tl.arange(0, 16)).to(tl.int64)
    return o_rows[:, None] * (eighths.to(tl.int64) * 8) + (start + tl.arange(0, 32))[None, :]


@triton.jit
def product(
    a: tl.tensor,
    b: tl.tensor,
    i_block: tl.tensor,
    i_group: tl.tensor,
    i_adapter: tl.tensor,
    COUNT: tl.constexpr,
    FACTOR: tl.constexpr,
    RANK: tl.constexpr,
) -> tl.tensor:
    """B @ A of one adapter on a block's group of columns, float32 (16, 32), in the layout of W."""
    o_b = (i_block * COUNT + i_adapter) * (RANK * 16)
    o_a = (i_group * COUNT + i_adapter) * (RANK * 32)
    b_b = load_b(factor_pointer(b, FACTOR) + o_b + tl.arange(0, RANK * 16), 16, RANK, FACTOR)
    b_a = load_a(factor_pointer(a, FACTOR) + o_a + tl.arange(0, RANK * 32), RANK, 32, FACTOR)
    return in_columns(multiply(b_b, b_a, tl.zeros((16, 32), dtype=tl.float32)), 16, 32)


@triton.jit
def tile_mask(o_rows: tl.tensor, i_group: tl.tensor, rows: tl.tensor, column_eighths: tl.tensor) -> tl.tensor:
    """What of a group lies in the matrix, (16, 32)."""
    return (o_rows < rows)[:, None] & (i_group * 32 + tl.arange(0, 32) < column_eighths * 8)[None, :]
