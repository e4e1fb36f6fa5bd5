"""Triton kernels against the copy bandwidth of the GPU they run on.

    python kernels/benchmarks/gpu.py [--rounds N] [--results DIR]

Each case is first compared with float64; on a wrong result nothing is timed and the exit status is 1. Then the case and
a plain copy run in turn over as many tensors as several times the second-level cache holds, so that neither finds its
data there. `share of copy` is bytes per second, of what the operation must read and write at least, over the copy's
bytes per second in the same round; the median over the rounds is reported. Merges of low-rank updates do all tensors in
one launch, as a model's are done; the others launch once or a few times per tensor, and on small tensors show the time
that takes. Results go to `results/gpu-<device>.json`. Without a GPU it says so, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_kernels.ops import (
    LowRank,
    MergeJob,
    dare_merge,
    merge_dora,
    merge_low_rank_grouped,
    tensor_stats_grouped,
    ties_merge,
)
from lora_kernels.ops.dare_merge import reference as dare_reference
from lora_kernels.ops.merge_dora import reference as dora_reference
from lora_kernels.ops.merge_low_rank import reference as merge_reference
from lora_kernels.ops.testing import assert_close

SHAPES = ((4096, 4096), (8192, 28672))
# More than the 50 MB of second-level cache of an H200, several times over.
ROTATION_BYTES = 1 << 30
KEYS = [1, 2, 3, 4]
WEIGHTS = [1.0, 0.5, -1.0, 0.25]


Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """run(pairs): the operation on each W, into the output beside it. exact(w, out): one of them in plain torch, in
    float64 or as torch computes it, by out's type; None where the tests alone check the result. passes: how often W's
    bytes move, 2 for one read and one write."""

    name: str
    run: Callable[[list[Pair]], object]
    exact: Callable[[torch.Tensor, torch.Tensor], object] | None
    passes: int


def cases(shape: tuple[int, int]) -> list[Case]:
    one, four = _loras(shape, 1, 16), _loras(shape, 4, 16)
    magnitude = _normal((shape[0],), 1.0)
    ties: dict[str, Any] = {"weights": WEIGHTS, "density": 0.2}
    dare: dict[str, Any] = {"weights": WEIGHTS, "density": 0.5, "keys": KEYS}
    return [
        *(
            _merging(_loras(shape, count, rank), f"merge {count} x rank {rank}")
            for count in (1, 4)
            for rank in (16, 64)
        ),
        Case(
            "merge 1 x rank 16, statistics",
            lambda pairs: merge_low_rank_grouped([MergeJob(w, one, out) for w, out in pairs], stats=True),
            None,
            passes=2,
        ),
        Case(
            "DoRA rank 16",
            lambda pairs: [merge_dora(w, one[0], magnitude, out=out) for w, out in pairs],
            lambda w, out: dora_reference.merge(w, one[0], magnitude, out, compute=_compute(out)),
            passes=3,
        ),
        Case("statistics of a tensor", lambda pairs: tensor_stats_grouped([w for w, _ in pairs]), None, passes=1),
        # Near its threshold an element is kept or not by a last bit, so that float64 keeps others: see the tests.
        Case(
            "TIES of 4 x rank 16",
            lambda pairs: [ties_merge(w, four, out=out, **ties) for w, out in pairs],
            None,
            passes=2,
        ),
        Case(
            "DARE of 4 x rank 16",
            lambda pairs: [dare_merge(w, four, out=out, **dare) for w, out in pairs],
            lambda w, out: dare_reference.merge(w, four, out, **dare, method=None, compute=_compute(out)),
            passes=2,
        ),
    ]


def _merging(adapters: list[LowRank], name: str) -> Case:
    return Case(
        name,
        lambda pairs: merge_low_rank_grouped([MergeJob(w, adapters, out) for w, out in pairs]),
        lambda w, out: merge_reference.merge([(w, adapters, out)], stats=False, compute=_compute(out)),
        passes=2,
    )


def check(case: Case, w: torch.Tensor) -> None:
    """Raise AssertionError unless the case is as close to float64 as plain torch is."""
    if case.exact is None:
        return
    exact, as_torch, got = torch.empty_like(w, dtype=torch.float64), torch.empty_like(w), torch.empty_like(w)
    case.exact(w, exact)
    case.exact(w, as_torch)
    case.run([(w, got)])
    assert_close(got, exact, as_torch=as_torch, factor=2.0)


def measure(case: Case, shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    count = max(2, ROTATION_BYTES // (2 * 2 * shape[0] * shape[1]))
    pairs = [(_normal(shape, 0.02), torch.empty(shape, dtype=torch.bfloat16, device="cuda")) for _ in range(count)]
    size = pairs[0][0].nbytes
    shares, copies, times = [], [], []
    for _ in range(rounds + 1):
        copied = _seconds(lambda: [out.copy_(w) for w, out in pairs]) / count
        taken = _seconds(lambda: case.run(pairs)) / count
        copies.append(2 * size / copied)
        times.append(taken)
        shares.append(case.passes * size / taken / (2 * size / copied))
    # The first round compiles.
    return {
        "case": case.name,
        "shape": list(shape),
        "milliseconds": statistics.median(times[1:]) * 1e3,
        "copy_bytes_per_second": statistics.median(copies[1:]),
        "share_of_copy": statistics.median(shares[1:]),
        "rounds": rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Triton kernels against the copy bandwidth of this GPU.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU on this machine: nothing was measured, and no figure about a GPU is claimed.")
        return 0
    device = torch.cuda.get_device_name()
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        for case in cases(shape):
            try:
                check(case, _normal(shape, 0.02))
            except AssertionError as error:
                print(f"{case.name} on {shape} is wrong, so that no speed is told: {error}", file=sys.stderr)
                return 1
            rows.append(measure(case, shape, arguments.rounds))
            print("{case:32} {shape!s:16} {milliseconds:9.3f} ms  {share_of_copy:6.1%} of copy".format(**rows[-1]))
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"gpu-{device.lower().replace(' ', '-').replace('/', '-')}.json"
    record = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda, "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {path}.")
    return 0


def _loras(shape: tuple[int, int], count: int, rank: int) -> list[LowRank]:
    return [LowRank(_normal((shape[0], rank), 0.02), _normal((rank, shape[1]), 0.02), scale=2.0) for _ in range(count)]


def _normal(shape: tuple[int, ...], scale: float) -> torch.Tensor:
    return (torch.randn(shape, device="cuda") * scale).bfloat16()


def _compute(out: torch.Tensor) -> torch.dtype:
    return torch.float64 if out.dtype == torch.float64 else torch.float32


def _seconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


if __name__ == "__main__":
    sys.exit(main())
