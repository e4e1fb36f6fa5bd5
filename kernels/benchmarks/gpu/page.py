"""The table of docs/kernels.md: predictions, and beside them what was measured, if it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.predictions import PREDICTIONS

RESULTS: Final = Path(__file__).parents[1] / "results"
LARGEST: Final = [8192, 28672]


def tables(results: Path = RESULTS) -> str:
    """Return the table. results: a folder with the lines of at most one run, `gpu-<device>.jsonl`."""
    return "\n".join(_table(_measured(results))) + "\n"


def _measured(results: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    for path in sorted(results.glob("gpu-*.jsonl")):
        for line in map(json.loads, path.read_text("utf-8").splitlines()):
            if line["kind"] == "time" and line["shape"] == LARGEST and not line["again"] and line.get("milliseconds"):
                rows[line["case"]] = line
    return rows


def _table(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "| 8192 x 28672, bf16 | floor, ms | earlier kernels, ms | predicted, ms | measured, ms | share of copy |"
    yield "|---|---|---|---|---|---|"
    for name, prediction in PREDICTIONS.items():
        before = "-" if prediction.before is None else f"{prediction.before:g}"
        row = measured.get(name)
        seen = "not run | -" if row is None else f"{row['milliseconds']:.3f} | {row['share_of_copy']:.0%}"
        yield (f"| {name} | {prediction.floor:.3f} | {before} | {prediction.low:g} to {prediction.high:g} | {seen} |")
