"""Triton kernels against the copy bandwidth of the GPU they run on.

    python -m benchmarks.gpu [--rounds N] [--results DIR]

Each case is first compared with float64; after a wrong result nothing is timed and the exit status is 1. Then the case,
a plain copy and the case's peer run in turn, over tensors of many times the size of the L2 cache, so that no data is
cached. `share of copy` is bytes per second, counting what the operation must read and write at least, over the copy's
bytes per second in the same round. Reported is the median over the rounds, in GPU time, and the time of a whole call
including the host's part. Low-rank merges process all tensors in one launch, as for a model; others launch once or a
few times per tensor. Results go to `results/gpu-<device>.json`. Without a GPU nothing is measured or written.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gpu.cases import Case, Shape, cases, normal, size
from benchmarks.gpu.clock import on_device, whole_call

SHAPES: Final[tuple[Shape, ...]] = ((4096, 4096), (8192, 28672))
# About twenty times the L2 cache of an H200.
ROTATION_BYTES: Final = 1 << 30


def measure(case: Case, shape: Shape, rounds: int) -> dict[str, Any]:
    items = [case.prepare()]
    per_item = case.moved(items[0])
    items += [case.prepare() for _ in range(max(2, ROTATION_BYTES // per_item) - 1)]
    moved = per_item * len(items)
    source = normal((max(2, ROTATION_BYTES // (4 * shape[0] * shape[1])), *shape), 0.02)
    target = torch.empty_like(source)
    copies, times, calls, peers = [], [], [], []
    for _ in range(rounds + 1):
        copies.append(2 * size(source) / on_device(lambda: target.copy_(source)))
        times.append(on_device(lambda: case.run(items)))
        calls.append(whole_call(lambda: case.run(items)))
        if case.peer is not None:
            peers.append(on_device(partial(case.peer, items)))
    # The first round compiles.
    copies, times, calls, peers = (values[1:] for values in (copies, times, calls, peers))
    shares = [moved / taken / copied for taken, copied in zip(times, copies, strict=True)]
    return {
        "case": case.name,
        "shape": list(shape),
        "milliseconds": statistics.median(times) / len(items) * 1e3,
        "call_milliseconds": statistics.median(calls) / len(items) * 1e3,
        "copy_bytes_per_second": statistics.median(copies),
        "share_of_copy": statistics.median(shares),
        "lowest_share": min(shares),
        "bar": case.bar,
        "times_torch": statistics.median(peers) / statistics.median(times) if peers else None,
        "rounds": rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU on this machine: nothing was measured.")
        return 0
    device = torch.cuda.get_device_name()
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        for case in cases(shape):
            try:
                if case.check is not None:
                    case.check(case.prepare())
            except AssertionError as error:
                print(f"{case.name} on {shape} is wrong, so no speed is reported: {error}", file=sys.stderr)
                return 1
            rows.append(measure(case, shape, arguments.rounds))
            print(_line(rows[-1]), flush=True)
            torch.cuda.empty_cache()
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"gpu-{device.lower().replace(' ', '-').replace('/', '-')}.json"
    libraries = {"torch": torch.__version__, "triton": importlib.metadata.version("triton")}
    record = {"device": device, **libraries, "cuda": torch.version.cuda, "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {path}.")
    return 0


def _line(row: dict[str, Any]) -> str:
    bar = (
        ""
        if row["bar"] is None
        else f"  bar {row['bar']:.0%} {'met' if row['share_of_copy'] >= row['bar'] else 'NOT met'}"
    )
    torch_times = "" if row["times_torch"] is None else f"  {row['times_torch']:.1f} x torch"
    return (
        f"{row['case']:32} {row['shape']!s:14} {row['milliseconds']:8.4f} ms  call {row['call_milliseconds']:8.4f} ms  "
        f"{row['share_of_copy']:6.1%} of copy{bar}{torch_times}"
    )


if __name__ == "__main__":
    sys.exit(main())
