"""Chosen launch configurations, as data. Nothing is tuned at run time: the same call launches the same code everywhere.

`measured` says where and by what a row was chosen; `python -m benchmarks.gpu.tune` measures, and
`kernels/benchmarks/results/tune-nvidia-h200.json` has what it found. Rows that no GPU has measured say so. Every
variant must compile for sm_90 without a spill, so that float32 factors, which need more registers, have more warps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

NOT_MEASURED: Final = "not measured on a GPU; every variant compiles for sm_90 without spills"


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """Tile of W per program (rows, columns), slice of the rank per step, warps and pipeline stages. wide_warps: where
    an element needs more registers; None: as elsewhere."""

    rows: int
    columns: int
    rank: int
    warps: int
    stages: int
    wide_warps: int | None = None
    measured: str = NOT_MEASURED

    def suited(self, *, factor: torch.dtype | None = None, aligned: bool = True) -> LaunchConfig:
        """For factors of this type and rows that are aligned or not."""
        if self.wide_warps is None or (factor != torch.float32 and aligned):
            return self
        return replace(self, warps=self.wide_warps, wide_warps=None)


def _on_h200(share: str) -> str:
    return f"NVIDIA H200, 8192 x 28672: {share} of the copy's bandwidth"


MERGE_LOW_RANK: Final = LaunchConfig(64, 64, 16, 4, 1, 8, measured=_on_h200("58 %, 8 warps 37 %; four: 37 %"))
MERGE_DORA: Final = LaunchConfig(64, 64, 16, 4, 2, 8, measured=_on_h200("47 %, two reads counted"))
TENSOR_STATS: Final = LaunchConfig(1, 16384, 0, 4, 2, measured=_on_h200("50 %"))
# More is kept per element than in a merge.
SPARSE: Final = LaunchConfig(32, 64, 16, 4, 2, 8, measured=_on_h200("10 %, 8 warps 8 %"))
# The deltas whose magnitudes are counted must be those that are merged, bit for bit: the tiles are the same.
RADIX: Final = SPARSE
# Per adapter: a few for each of the 132 processors of an H200, so that each adds up many tiles before it writes.
RADIX_PROGRAMS: Final = 528
DEQUANTIZE: Final = LaunchConfig(64, 64, 0, 4, 2, 8, measured=_on_h200("49 %, 8 warps 40 %"))
MERGE_QUANTIZED: Final = LaunchConfig(64, 64, 16, 4, 2, 8, measured=_on_h200("27 %, 8 warps 21 %"))
# Columns of 64 are whole blocks of the size that nearly all NF4 checkpoints have.
REQUANTIZE: Final = LaunchConfig(64, 64, 16, 4, 2, 8, measured=_on_h200("5.6 %, 32 x 64 in 8 warps 3.5 %"))
# Elements per program, as rows of whole blocks; the largest block is 4096.
QUANTIZE_BLOCKS: Final = LaunchConfig(rows=1, columns=4096, rank=0, warps=8, stages=2)
# Rows of 256 absmax per program.
COMPRESS_ROWS: Final = 8
# Programs whose numbers are added up in one step.
TOTALS: Final = LaunchConfig(rows=1, columns=1024, rank=0, warps=8, stages=2)
