"""Launch configurations, as data. Nothing is tuned at run time: the same call launches the same code everywhere.

`measured` states on which device and by which result a configuration was chosen; those of kernels on tiles come
from `kernels/benchmarks/results/tune-nvidia-h200.json`. Every variant must compile for sm_90 without spills; on tiles,
float32 factors need more registers and therefore get more warps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

NOT_MEASURED: Final = "not measured on a GPU; every variant compiles for sm_90 without spills"


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """Tile of W per program (rows, columns), slice of the rank per step, warps and pipeline stages. wide_warps: for
    variants that need more registers per element; None if `warps` suffice."""

    rows: int
    columns: int
    rank: int
    warps: int
    stages: int
    wide_warps: int | None = None
    measured: str = NOT_MEASURED

    def suited(self, *, factor: torch.dtype | None = None, aligned: bool = True) -> LaunchConfig:
        """The configuration for a dtype of the factors and for aligned or other rows."""
        if self.wide_warps is None or (factor != torch.float32 and aligned):
            return self
        return replace(self, warps=self.wide_warps, wide_warps=None)


def _on_h200(share: str) -> str:
    return f"NVIDIA H200, 8192 x 28672: {share} of the copy's bandwidth"


# For layouts that `MERGE_ROWS` cannot walk along.
MERGE_LOW_RANK: Final = LaunchConfig(64, 64, 16, 4, 1, 8, measured=_on_h200("58 %, 8 warps 37 %; four: 37 %"))
# A warp for a block of 16 or 32 rows (`merge_low_rank.forms`) and so many columns, 16 or 32 K elements: fewer, longer
# walks leave processors idle at the end, more of them read job and B more often.
MERGE_ROWS: Final = LaunchConfig(rows=32, columns=1024, rank=64, warps=1, stages=1)
MERGE_DORA: Final = LaunchConfig(64, 64, 16, 4, 2, 8, measured=_on_h200("47 %, two reads counted"))
TENSOR_STATS: Final = LaunchConfig(1, 32768, 0, 4, 1)
# One warp for 16 rows and 512 columns: short segments, since the rows of a chunk are few.
DORA_ROWS: Final = LaunchConfig(rows=16, columns=512, rank=0, warps=1, stages=1)
# One warp for 16 rows and 4096 columns: the sums are few.
COUNT_ROWS: Final = LaunchConfig(rows=16, columns=4096, rank=0, warps=1, stages=1)
# One warp for 16 rows and 2048 columns.
SPARSE_ROWS: Final = LaunchConfig(rows=16, columns=2048, rank=0, warps=1, stages=1)
# Needs more registers per element than a merge.
SPARSE: Final = LaunchConfig(32, 64, 16, 4, 2, 8, measured=_on_h200("10 %, 8 warps 8 %"))
# The same tiles, since the counted deltas must be bitwise equal to the merged ones.
COUNT: Final = SPARSE
# Programs per adapter: a few for each of the 132 multiprocessors of an H200, so that each sums many tiles before it
# writes.
COUNT_PROGRAMS: Final = 528
# Elements in a row; 32 registers, so that 64 warps fit on a multiprocessor.
DEQUANTIZE: Final = LaunchConfig(1, 8192, 0, 4, 1)
# Quantized weights in aligned layouts: rows of a band, the most columns of a program, one warp. 64 to 96 registers let
# 21 to 32 of them run on a multiprocessor, the 128 for several adapters of higher ranks 16.
BANDS: Final = LaunchConfig(16, 4096, 16, 1, 1)
# Programs of a large matrix: two for each warp that an H200 with its 132 multiprocessors holds.
BAND_PROGRAMS: Final = 2 * 25 * 132
# Quantized weights in other layouts.
MERGE_QUANTIZED: Final = LaunchConfig(64, 64, 16, 4, 2, 8, measured=_on_h200("27 %, 8 warps 21 %, aligned"))
# Elements per program, as rows of whole blocks; the largest block is 4096.
QUANTIZE_BLOCKS: Final = LaunchConfig(rows=1, columns=4096, rank=0, warps=8, stages=2)
# Rows of 256 absmax per program.
COMPRESS_ROWS: Final = 8
# A group of A or a block of B.
ARRANGE: Final = LaunchConfig(rows=32, columns=32, rank=64, warps=1, stages=1)
# Programs whose results are summed in one step.
TOTALS: Final = LaunchConfig(rows=1, columns=1024, rank=0, warps=8, stages=2)
