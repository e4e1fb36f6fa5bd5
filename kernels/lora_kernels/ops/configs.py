"""Chosen launch configurations, as data. Nothing is tuned at run time: the same call launches the same code everywhere.

`measured` says where and by what a row was chosen. Rows that no GPU has measured say so; for them the choice is the
largest tile with which every variant compiles for sm_90 without a spill (`docs/kernels.md` has the registers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NOT_MEASURED: Final = "not measured on a GPU; every variant compiles for sm_90 without spills"


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """Tile of W per program (rows, columns), slice of the rank per step, warps and pipeline stages."""

    rows: int
    columns: int
    rank: int
    warps: int
    stages: int
    measured: str = NOT_MEASURED


# 64 x 128 in 8 warps needs up to 255 registers, 64 x 64 in 4 warps up to 255 and spills; slices of 32 or 64 of the rank
# cost registers, which with tiles of this size leave fewer warps in flight.
MERGE_LOW_RANK: Final = LaunchConfig(rows=64, columns=64, rank=16, warps=8, stages=2)
MERGE_DORA: Final = MERGE_LOW_RANK
TENSOR_STATS: Final = LaunchConfig(rows=1, columns=4096, rank=0, warps=8, stages=2)
# More is kept per element than in a merge: at 64 x 64 some variants spill.
SPARSE: Final = LaunchConfig(rows=32, columns=64, rank=16, warps=8, stages=2)
# The deltas whose magnitudes are counted must be those that are merged, bit for bit: the tiles are the same.
RADIX: Final = SPARSE
# Per adapter: a few for each of the 132 processors of an H200, so that each adds up many tiles before it writes.
RADIX_PROGRAMS: Final = 528
DEQUANTIZE: Final = LaunchConfig(rows=64, columns=64, rank=0, warps=8, stages=2)
MERGE_QUANTIZED: Final = MERGE_LOW_RANK
# Columns of 64 are whole blocks of the size that nearly all NF4 checkpoints have.
REQUANTIZE: Final = SPARSE
# Elements per program, as rows of whole blocks; the largest block is 4096.
QUANTIZE_BLOCKS: Final = LaunchConfig(rows=1, columns=4096, rank=0, warps=8, stages=2)
# Rows of 256 absmax per program.
COMPRESS_ROWS: Final = 8
