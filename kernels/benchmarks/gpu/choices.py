"""Other launch configurations of a few operations. The compiled code does not say which is fastest: one run decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch

from benchmarks.gpu import checks
from benchmarks.gpu.cases import Case, Inputs, Item, size
from benchmarks.gpu.place import Place, Shape
from lora_kernels.ops import LowRank, tensor_stats
from lora_kernels.ops.configs import DORA_ROWS, TENSOR_STATS, LaunchConfig
from lora_kernels.ops.merge_dora import aligned as dora
from lora_kernels.ops.merge_dora import in_torch as dora_reference
from lora_kernels.ops.single import single
from lora_kernels.ops.tensor_stats import kernel as stats

_MEGABYTE: Final = 1 << 20
# Of W, in bytes, and columns of a segment. The last is all of a matrix: W is read twice from memory.
_CHUNKS: Final = ((15, 512), (30, 256), (30, 1024), (50, 512), (4096, 2048))
_STRETCHES: Final = (16384, 65536, 131072)


def choices(place: Place, shape: Shape) -> list[Case]:
    inputs = Inputs(place, shape)
    (one,), magnitude = inputs.loras(1, 16), inputs.normal(shape[:1], 1.0)
    return [
        *(_dora(inputs, one, magnitude, megabytes, columns) for megabytes, columns in _CHUNKS),
        *(_statistics(inputs, replace(TENSOR_STATS, columns=columns)) for columns in _STRETCHES),
    ]


def _dora(inputs: Inputs, one: LowRank, magnitude: torch.Tensor, megabytes: int, columns: int) -> Case:
    config = replace(DORA_ROWS, columns=columns)

    def merge(w: torch.Tensor, out: torch.Tensor) -> None:
        laid_out = single(w, out, [one], most=1, unroll=dora.UNROLL, transpose=False)
        assert laid_out is not None, "the shape is not aligned"
        dora.merge(laid_out, magnitude, config=config, chunk_bytes=megabytes * _MEGABYTE)

    def run(items: Sequence[Item]) -> None:
        for w, out in items:
            merge(w, out)

    return Case(
        f"DoRA rank 16, chunks of {megabytes} MiB, segments of {columns}",
        inputs.dense,
        run,
        lambda item: 2 * size(item[0]) + size(item[1]),
        lambda: checks.close(
            inputs.weight(), inputs.empty(), merge,
            lambda w, out, compute: dora_reference.merge(w, one, magnitude, out, compute=compute),
        ),
        (),
        ("row_squares_kernel", "scale_rows_kernel"),
    )  # fmt: skip


def _statistics(inputs: Inputs, config: LaunchConfig) -> Case:
    def run(items: Sequence[Item]) -> torch.Tensor:
        return stats.sums([w for w, _ in items], config=config)

    def check() -> None:
        w = inputs.unusual()
        (got,), exact = run([(w, w)]).tolist(), tensor_stats(w, backend="torch")
        assert got[1:] == [exact.max_abs, exact.non_finite], (got, exact)
        assert abs(got[0] - exact.sum_squares) <= 2.0**-21 * exact.sum_squares, (got, exact)

    return Case(
        f"statistics of a tensor, {config.columns} elements per program",
        inputs.dense,
        run,
        lambda item: size(item[0]),
        check,
        (),
        ("tensor_stats_kernel",),
        mix="read",
    )
