"""Triton kernels against the bandwidth of the GPU they run on, in one run.

    python -m benchmarks.gpu [--limit SECONDS] [--results DIR] [--dry]

With the folders `kernels` and `client` on the path it needs Python, torch, Triton and numpy. In this order: what the
device can reach; each case against float64 or to the byte; the time of those that are right, beside a copy, with clocks
and power; hardware counters. Every line is on disk, in `results/gpu-<device>.jsonl`, before the next thing begins, and
after 75 % of the limit nothing new begins. A wrong result is reported and not timed, and makes the exit status 1.

Without a GPU nothing is measured. --dry goes through all stages in Triton's interpreter, on small shapes, without a
clock.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.cases import Case
    from benchmarks.gpu.journal import Journal
    from benchmarks.gpu.monitor import Monitor
    from benchmarks.gpu.place import Place, Shape


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=float, default=480, metavar="SECONDS", help="of the whole run (default: 480)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results", metavar="DIR")
    parser.add_argument("--dry", action="store_true", help="interpret small shapes; for a machine without a GPU")
    parser.add_argument("--once", metavar="CASE", help="run one case once, on the largest shape (for ncu)")
    arguments = parser.parse_args()
    if arguments.dry:
        # Before Triton is imported.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from benchmarks.gpu import journal, place

    if not (arguments.dry or torch.cuda.is_available()):
        print("There is no GPU on this machine: nothing was measured. --dry goes through the stages without one.")
        return 0
    torch.manual_seed(0)
    where = place.Dry() if arguments.dry else place.Gpu()
    if arguments.once is not None:
        _once(where, arguments.once)
        return 0
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"gpu-{where.name().lower().replace(' ', '-').replace('/', '-')}.jsonl"
    return _run(where, journal.Journal(path, arguments.limit))


def _run(where: Place, lines: Journal) -> int:
    from benchmarks.gpu.monitor import Monitor

    with Monitor() as monitor:
        lines.write("environment", device=where.name(), **_environment())
        ceilings = _ceilings(where, lines, monitor)
        right, wrong = _check(where, lines)
        for shape in reversed(where.shapes):
            _time(where, shape, lines, monitor, right, ceilings)
        _count(where, lines, right)
    lines.write("end", wrong=sorted(wrong))
    return 1 if wrong else 0


def _environment() -> dict[str, Any]:
    import torch

    from benchmarks.gpu.monitor import driver

    libraries = {name: version(name) for name in ("torch", "triton")}
    return {"driver": driver(), "python": platform.python_version(), **libraries, "cuda": torch.version.cuda}


def _ceilings(where: Place, lines: Journal, monitor: Monitor) -> dict[str, float | None]:
    from benchmarks.gpu.ceilings import bandwidths, matrix_unit_sums
    from benchmarks.gpu.rates import rates

    found: dict[str, float | None] = {}
    monitor.take()
    for row in bandwidths(where):
        found[row["mix"]] = row["bytes_per_second"]
        lines.write("ceiling", **row, card=monitor.take())
    for row in matrix_unit_sums(where):
        lines.write("matrix unit sum", **row)
    for row in rates(where):
        lines.write("rate", **row, card=monitor.take())
    where.finish()
    return found


def _check(where: Place, lines: Journal) -> tuple[set[str], set[str]]:
    """Check every case on an odd shape and on one of whole tiles, which also compiles the kernels. Returns the names of
    those that are right on both, and of those that are wrong."""
    from benchmarks.gpu.cases import cases
    from benchmarks.gpu.choices import choices

    checked: set[str] = set()
    wrong: set[str] = set()
    listed = [(where.odd, case) for case in cases(where, where.odd)]
    listed += [(where.shapes[0], case) for case in cases(where, where.shapes[0])]
    for shape, case in [*listed, *((where.odd, case) for case in choices(where, where.odd))]:
        checked.discard(case.name)
        if not lines.may_begin(f"check of {case.name} on {shape}"):
            continue
        checked.add(case.name)
        failure = None
        try:
            case.check()
        except Exception as error:  # noqa: BLE001 - one broken case must not cost the run the others
            failure = f"{type(error).__name__}: {error}"[:500]
            wrong.add(case.name)
        lines.write("check", case=case.name, shape=list(shape), right=failure is None, failure=failure)
        where.finish()
    return checked - wrong, wrong


def _time(
    where: Place, shape: Shape, lines: Journal, monitor: Monitor, right: set[str], ceilings: dict[str, float | None]
) -> None:
    from benchmarks.gpu.cases import cases
    from benchmarks.gpu.choices import choices
    from benchmarks.gpu.timing import measure

    listed = [case for case in cases(where, shape) if case.name in right]
    # The first again at the end: what differs is noise, or a card that got warm.
    again = len(listed)
    listed += listed[:1]
    if shape == where.shapes[-1]:
        listed += [case for case in choices(where, shape) if case.name in right]
    for index, case in enumerate(listed):
        if not lines.may_begin(f"{case.name} on {shape}"):
            return
        monitor.take()
        try:
            fields = measure(where, case, ceilings)
        except Exception as error:  # noqa: BLE001 - as above
            fields = {"failure": f"{type(error).__name__}: {error}"[:500]}
        lines.write(
            "time", case=case.name, shape=list(shape), again=index == again, **fields,
            **_beside(case, shape, where), card=monitor.take(),
        )  # fmt: skip
        where.finish()


def _beside(case: Case, shape: Shape, where: Place) -> dict[str, Any]:
    """What was known before: the costs in the machine code of the kernels, and the prediction, for the shape that it
    was made for."""
    from benchmarks.gpu.predictions import PREDICTIONS, costs

    known: dict[str, Any] = {"costs": costs(case.variants, version("triton"))}
    prediction = PREDICTIONS.get(case.name)
    if prediction is None or shape != where.shapes[-1]:
        return known
    return known | {"predicted_milliseconds": [prediction.low, prediction.high], "floor_milliseconds": prediction.floor}


def _count(where: Place, lines: Journal, right: set[str]) -> None:
    from benchmarks.gpu import counters
    from benchmarks.gpu.cases import cases

    ncu = counters.program()
    if ncu is None:
        lines.write("counters", failed="there is no ncu on this machine")
        return
    named = {case.name: case for case in cases(where, where.shapes[0])}
    for name in counters.CHOSEN[: 1 if where.dry else None]:
        if name in right and lines.may_begin(f"counters of {name}"):
            limit = max(lines.left() - 10, 1)
            lines.write("counters", case=name, **counters.read(ncu, named[name], dry=where.dry, limit=limit))


def _once(where: Place, name: str) -> None:
    from benchmarks.gpu.cases import cases

    for case in cases(where, where.shapes[-1]):
        if case.name == name:
            case.run([case.prepare()])
            where.finish()


if __name__ == "__main__":
    sys.exit(main())
