"""Find the fastest launch configurations on this GPU: the measurements behind `lora_kernels.ops.configs`.

    python -m benchmarks.gpu.tune [KERNEL]... [--out FILE] [--compilers N]

Every configuration of a kernel's grid is compiled, in several processes, and timed on a large matrix in several rounds.
The table shows the fastest, as shares of the copy's bandwidth, and the one in use. Nothing is changed: write a choice
into `configs.py` by hand, with the device and shape that it was measured on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gpu.cases import Item, Shape, both, dense, loras, nf4, normal, size
from benchmarks.gpu.clock import on_device
from lora_kernels.ops import configs, empty_nf4
from lora_kernels.ops.configs import LaunchConfig

SHAPE: Final[Shape] = (8192, 28672)
SMALL: Final[Shape] = (1024, 4096)
ROUNDS: Final = 12
_SHOWN: Final = 8
_FIELDS: Final = ("rows", "columns", "rank", "warps", "stages")

Run = Callable[[Sequence[Item], LaunchConfig], None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """prepare(shape): an item. build(shape): a function that runs items with a configuration. present: the
    configuration in use."""

    prepare: Callable[[Shape], Item]
    build: Callable[[Shape], Run]
    grid: tuple[LaunchConfig, ...]
    present: LaunchConfig


def grid(
    rows: Sequence[int], columns: Sequence[int], ranks: Sequence[int], warps: Sequence[int], *, elements: range
) -> tuple[LaunchConfig, ...]:
    """All combinations whose tiles have a number of elements within `elements`."""
    chosen = itertools.product(rows, columns, ranks, warps, (1, 2))
    return tuple(LaunchConfig(r, c, k, w, stages) for r, c, k, w, stages in chosen if r * c in elements)


def _each(one: Callable[[Any, Any, LaunchConfig], object]) -> Run:
    """Run an operation that takes one weight per call."""

    def run(items: Sequence[Item], config: LaunchConfig) -> None:
        for w, out in items:
            one(w, out, config)

    return run


def _merge(count: int, rank: int, *, stats: bool = False) -> Callable[[Shape], Run]:
    def build(shape: Shape) -> Run:
        from lora_kernels.ops.merge_low_rank import kernel

        adapters = loras(shape, count, rank)

        def run(items: Sequence[Item], config: LaunchConfig) -> None:
            kernel.merge([(w, adapters, out) for w, out in items], stats=stats, config=config)

        return run

    return build


def _dora(shape: Shape) -> Run:
    from lora_kernels.ops.merge_dora import kernel

    (adapter,), magnitude = loras(shape, 1, 16), normal((shape[0],), 1.0)
    return _each(lambda w, out, config: kernel.merge(w, adapter, magnitude, out, config=config))


def _quantized(shape: Shape) -> Run:
    from lora_kernels.ops.merge_quantized import kernel

    adapters = loras(shape, 1, 16)
    return _each(lambda w, out, config: kernel.merge(w, adapters, out, stats=False, config=config))


def _dequantize(_shape: Shape) -> Run:
    from lora_kernels.ops.dequant_blockwise import kernel

    return _each(lambda w, out, config: kernel.dequantize(w, out, config=config))


def _requantize(shape: Shape) -> Run:
    from lora_kernels.ops.requantize_nf4 import kernel

    adapters = loras(shape, 1, 16)
    return _each(lambda w, out, config: kernel.requantize(w, adapters, out, config=config))


def _sparse(shape: Shape) -> Run:
    from lora_kernels.ops.sparse import kernel

    adapters = loras(shape, 4, 16)
    limits = torch.full((4,), 1 << 23, device="cuda")

    return _each(
        lambda w, out, config: kernel.merge(
            w, adapters, out, weights=[1.0] * 4, limits=limits, keys=[1, 2, 3, 4], method=None, config=config
        )
    )


def _radix(shape: Shape) -> Run:
    from lora_kernels.ops.ties_merge import kernel

    adapters = loras(shape, 4, 16)
    return _each(lambda w, _, config: kernel.limits(w, adapters, 0.2, config=config))


def _statistics(_shape: Shape) -> Run:
    from lora_kernels.ops.tensor_stats import kernel

    def run(items: Sequence[Item], config: LaunchConfig) -> None:
        kernel.summaries([w for w, _ in items], config=config)

    return run


def _from_nf4(shape: Shape) -> Item:
    return nf4(shape), torch.empty(shape, dtype=torch.bfloat16, device="cuda")


def _nf4_to_nf4(shape: Shape) -> Item:
    return nf4(shape), empty_nf4(shape, blocksize=64, nested=True, device=torch.device("cuda"))


_TILES: Final = range(1024, 16385)
_MERGING: Final = grid((16, 32, 64, 128), (64, 128, 256), (16, 64), (2, 4, 8), elements=range(2048, 16385))
_ONE: Final = grid((16, 32, 64, 128), (64, 128, 256), (16,), (2, 4, 8), elements=range(2048, 16385))
_FOUR_BIT: Final = grid((8, 16, 32, 64, 128), (64, 128, 256, 512), (16,), (2, 4, 8), elements=_TILES)
KERNELS: Final[dict[str, Tuned]] = {
    "merge-1x16": Tuned(dense, _merge(1, 16), _MERGING, configs.MERGE_LOW_RANK),
    "merge-4x16": Tuned(dense, _merge(4, 16), _MERGING, configs.MERGE_LOW_RANK),
    "merge-4x64": Tuned(dense, _merge(4, 64), _MERGING, configs.MERGE_LOW_RANK),
    "merge-1x16-stats": Tuned(dense, _merge(1, 16, stats=True), _ONE, configs.MERGE_LOW_RANK),
    "dora": Tuned(dense, _dora, _ONE, configs.MERGE_DORA),
    "nf4-merge": Tuned(_from_nf4, _quantized, _FOUR_BIT, configs.MERGE_QUANTIZED),
    "nf4": Tuned(_from_nf4, _dequantize, _FOUR_BIT, configs.DEQUANTIZE),
    "nf4-nf4": Tuned(_nf4_to_nf4, _requantize, _FOUR_BIT, configs.REQUANTIZE),
    "dare": Tuned(
        dense, _sparse, grid((16, 32, 64), (64, 128), (16,), (2, 4, 8), elements=_TILES), configs.SPARSE
    ),
    "radix": Tuned(
        dense, _radix, grid((16, 32, 64, 128), (64, 128), (16,), (4, 8), elements=_TILES), configs.RADIX
    ),
    "statistics": Tuned(
        dense, _statistics, grid((1,), (1024, 2048, 4096, 8192, 16384), (0,), (4, 8), elements=_TILES),
        configs.TENSOR_STATS,
    ),
}  # fmt: skip


def compiled(name: str, config: LaunchConfig) -> None:
    """Run a configuration once on a small matrix, in a child process, to fill the kernel cache."""
    tuned = KERNELS[name]
    tuned.build(SMALL)([tuned.prepare(SMALL)], config)
    torch.cuda.synchronize()


def timed(name: str, chosen: Sequence[LaunchConfig]) -> Iterator[dict[str, Any]]:
    tuned = KERNELS[name]
    run, items = tuned.build(SHAPE), [tuned.prepare(SHAPE) for _ in range(2)]
    moved = sum(both(item) for item in items)
    source = normal((2, *SHAPE), 0.02)
    target = torch.empty_like(source)
    for config in chosen:
        run(items, config)
    times: dict[LaunchConfig, list[float]] = {config: [] for config in chosen}
    copies = []
    for _ in range(ROUNDS):
        copies.append(2 * size(source) / on_device(lambda: target.copy_(source)))
        for config in chosen:
            times[config].append(on_device(lambda config=config: run(items, config)))  # type: ignore[misc]
    copied = statistics.median(copies)
    for config, values in times.items():
        taken = statistics.median(values)
        row = {key: getattr(config, key) for key in _FIELDS}
        yield {"kernel": name, **row, "milliseconds": taken / 2 * 1e3, "share_of_copy": moved / taken / copied}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tune", description=__doc__)
    parser.add_argument("kernel", nargs="*", choices=[[], *KERNELS], help="default: all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compilers", type=int, default=12)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU on this machine: nothing was measured.")
        return 0
    names = arguments.kernel or list(KERNELS)
    tasks = [(name, config) for name in names for config in dict.fromkeys((*KERNELS[name].grid, KERNELS[name].present))]
    with ProcessPoolExecutor(arguments.compilers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(compiled, name, config) for name, config in tasks]
        failures = [future.exception() for future in futures]
    for (name, config), failure in zip(tasks, failures, strict=True):
        if failure:
            print(f"{name} {config}: {str(failure)[:120]}")
    rows = []
    for name in names:
        usable = [c for (kernel, c), failure in zip(tasks, failures, strict=True) if kernel == name and not failure]
        found = sorted(timed(name, usable), key=lambda row: row["milliseconds"])
        rows += found
        present = KERNELS[name].present
        print(f"{name}, on {SHAPE}:", flush=True)
        for row in found:
            used = all(row[key] == getattr(present, key) for key in _FIELDS)
            if used or row in found[:_SHOWN]:
                print(_line(row) + ("  in use" if used else ""))
    if arguments.out is not None:
        head = json.dumps({"device": torch.cuda.get_device_name(), "shape": SHAPE, "rows": []}).removesuffix("]}")
        lines = ",\n".join(json.dumps(_rounded(row)) for row in rows)
        arguments.out.write_text(f"{head}\n{lines}\n]}}\n", encoding="utf-8")
    return 0


def _line(row: dict[str, Any]) -> str:
    return (
        "  {rows:4} x {columns:4}  rank {rank:3}  {warps} warps  {stages} stages  "
        "{milliseconds:8.4f} ms {share_of_copy:6.1%}".format(**row)
    )


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Round to four digits, finer than the differences between runs."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
