"""Tables for one launch on many matrices of different shapes: jobs, adapters, programs.

A launch has one dtype for all W, one for all outputs and one for all factors; everything else is data. Addresses and
strides are 64 bits wide, so that matrices of more than 2^31 elements and any strides work. A column-major matrix is
transposed first, (W + B A)^T = W^T + A^T B^T: rows in kernels are contiguous if any dimension is.

Factors are stored in one of two ways: row by row, for tiles at any place (`tiles.adapter_delta`), or in the order in
which the matrix units take them (`fragments`), for kernels that walk along a block of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import torch
from torch import Tensor

from lora_kernels.ops.arrange import Arrangement, arrange
from lora_kernels.ops.launch import upload
from lora_kernels.ops.low_rank import LowRank

# Fields of a job, int64; addresses in bytes, strides and sizes in elements. start: its first program. first, count: its
# adapters. Element (row, column) has the number row * e_row + column * e_column in the caller's W.
FIELDS: Final = (
    "w", "out", "rows", "columns", "w_row", "w_column", "out_row", "out_column",
    "start", "first", "count", "e_row", "e_column",
)  # fmt: skip
E_COLUMN: Final = FIELDS.index("e_column")
# Aligned addresses, strides, numbers of columns and ranks are multiples of these; kernels pass them as hints.
ALIGNED_BYTES: Final = 16
ALIGNED_ELEMENTS: Final = 8


@dataclass(frozen=True, slots=True)
class Tables:
    """Arguments of a launch.

    Args:
        jobs: int64 (n, len(FIELDS)).
        factors: int64 (adapters, 3), addresses of B and A, and the rank. With an `Arrangement`, (adapters * planes, 3):
            B of the first block and A of the first group; those of the next follow after those of the whole job.
        scales: float32 (adapters,).
        owners: int32 (programs,), the job of each program.
        aligned: rows of all matrices are contiguous, and addresses, strides and numbers of columns allow 16-byte
            accesses.
        numbered_along_rows: no matrix was transposed.
        tile_counts: number of tiles of each job.
        keep: tensors that own the memory of the addresses.
    """

    jobs: Tensor
    factors: Tensor
    scales: Tensor
    owners: Tensor
    factor_dtype: torch.dtype
    aligned: bool
    numbered_along_rows: bool
    tile_counts: tuple[int, ...]
    keep: tuple[Tensor, ...]

    @property
    def programs(self) -> int:
        return self.owners.shape[0]


def build(
    matrices: Sequence[tuple[Tensor, Tensor]],
    adapters: Sequence[Sequence[LowRank]],
    *,
    rows: int,
    columns: int,
    transpose: bool = True,
    device: torch.device | None = None,
    arrangement: Arrangement | None = None,
) -> Tables:
    """Build the tables of a launch.

    Args:
        matrices: (W, output) of each job, with one dtype each and on one device; the same tensor twice for in-place.
        adapters: of each job.
        rows, columns: size of a tile.
        transpose: False if a kernel must not transpose matrices.
        device: None for that of the first matrix; required if that is a meta tensor, whose memory the kernel gets as a
            separate argument.
        arrangement: None to store factors row by row.
    """
    device = matrices[0][0].device if device is None else device
    dtypes = {factor.dtype for group in adapters for adapter in group for factor in (adapter.a, adapter.b)}
    factor_dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    jobs: list[list[int]] = []
    scales: list[float] = []
    counts: list[int] = []
    weights: list[Tensor] = []
    pairs: list[list[tuple[Tensor, Tensor]]] = []
    for (given, result), group in zip(matrices, adapters, strict=True):
        present = [adapter for adapter in group if adapter.rank]
        swap = transpose and lies_by_columns(given)
        w, out = (given.T, result.T) if swap else (given, result)
        elements = (1, given.shape[1]) if swap else (given.shape[1], 1)
        jobs.append([
            w.data_ptr(), out.data_ptr(), *w.shape, *w.stride(), *out.stride(),
            sum(counts), len(scales), len(present), *elements,
        ])  # fmt: skip
        weights += (w, out)
        pairs.append([(adapter.a.T, adapter.b.T) if swap else (adapter.b, adapter.a) for adapter in present])
        scales += [adapter.scale for adapter in present]
        counts.append(-(-w.shape[0] // rows) * -(-w.shape[1] // columns))
    if arrangement is None:
        stored = [(_row_major(b, factor_dtype, dim=1), _row_major(a, factor_dtype, dim=0)) for b, a in chain(*pairs)]
        keep = [factor for pair in stored for factor in pair]
        factors = [[b.data_ptr(), a.data_ptr(), a.shape[0]] for b, a in stored]
    else:
        arranged, keep = arrange(pairs, factor_dtype, arrangement, device)
        factors = [
            [b[:, index].data_ptr(), a[:, index].data_ptr(), arrangement.rank]
            for b, a in arranged
            for index in range(b.shape[1])
        ]
    # One copy for all tables: for small tensors separate copies took longer than the kernels.
    parts = [torch.tensor(part, dtype=torch.int64).reshape(-1) for part in (jobs, factors, counts)]
    parts.append(_as_words(scales))
    on_device = torch.split(upload(torch.cat(parts), torch.int64, device), [len(part) for part in parts])
    return Tables(
        jobs=on_device[0].reshape(-1, len(FIELDS)),
        factors=on_device[1].reshape(-1, 3),
        scales=on_device[3].view(torch.float32)[: len(scales)],
        owners=_owners(on_device[2], counts),
        factor_dtype=factor_dtype,
        numbered_along_rows=all(job[E_COLUMN] == 1 for job in jobs),
        aligned=all(is_aligned(tensor) for tensor in weights),
        tile_counts=tuple(counts),
        keep=(*weights, *keep),
    )


def _as_words(scales: Sequence[float]) -> Tensor:
    """float32 numbers, two per int64, the last padded with zero."""
    return torch.tensor([*scales, *[0.0] * (len(scales) % 2)], dtype=torch.float32).view(torch.int64)


def _owners(on_device: Tensor, counts: Sequence[int]) -> Tensor:
    """The job of each program, int32. on_device, counts: number of programs of each job."""
    if len(counts) == 1:
        return torch.zeros(counts[0], dtype=torch.int32, device=on_device.device)
    return torch.repeat_interleave(on_device, output_size=sum(counts)).int()


def _row_major(factor: Tensor, dtype: torch.dtype, *, dim: int) -> Tensor:
    """A factor in row-major order, aligned, its rank (dimension `dim`) padded with zeros to a multiple for wide loads.
    Copies at most the factor, a few thousandths of W."""
    missing = -factor.shape[dim] % ALIGNED_ELEMENTS
    if missing:
        shape = list(factor.shape)
        shape[dim] = missing
        factor = torch.cat((factor, factor.new_zeros(shape)), dim=dim)
    factor = factor.to(dtype).contiguous()
    return factor.clone() if factor.data_ptr() % ALIGNED_BYTES else factor


def lies_by_columns(w: Tensor) -> bool:
    """Whether `build` transposes the matrix."""
    return w.stride(1) != 1 and w.stride(0) == 1


def is_aligned(tensor: Tensor) -> bool:
    """Whether rows are contiguous, and address, stride and number of columns allow 16-byte accesses."""
    return tensor.numel() == 0 or (
        tensor.data_ptr() % ALIGNED_BYTES == 0
        and tensor.stride(1) == 1
        and tensor.stride(0) % ALIGNED_ELEMENTS == 0
        and tensor.shape[1] % ALIGNED_ELEMENTS == 0
    )
