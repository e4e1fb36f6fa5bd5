"""What was computed before any run of the present kernels, for 8192 x 28672 on an H200, and what earlier ones took.

The times are models, not measurements: the larger of the bytes at 92 % of the copy's bandwidth (4.28 TB/s) and of the
work on the integer pipe at 60 to 70 % of its rate. A miss shows what the model does not know; see docs/kernels.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TABLE: Final = Path(__file__).parents[1] / "results" / "sass.json"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Milliseconds. floor: the bytes at the copy's bandwidth. low, high: predicted. before: measured in November 2026
    with the kernels of that time; None if they were not measured."""

    floor: float
    low: float
    high: float
    before: float | None


PREDICTIONS: Final = {
    "merge 1 x rank 16": Prediction(0.220, 0.24, 0.255, 0.375),
    "merge 2 x rank 16": Prediction(0.220, 0.24, 0.26, None),
    "merge 4 x rank 16": Prediction(0.220, 0.24, 0.26, 0.59),
    "merge 1 x rank 64": Prediction(0.220, 0.25, 0.26, None),
    "merge 4 x rank 64": Prediction(0.220, 0.33, 0.38, 2.2),
    "merge 1 x rank 16, statistics": Prediction(0.220, 0.25, 0.26, None),
    "merge 1 x rank 16, float32 factors": Prediction(0.220, 0.25, 0.26, None),
    "DoRA rank 16": Prediction(0.329, 0.27, 0.36, 0.70),
    "statistics of a tensor": Prediction(0.110, 0.12, 0.125, 0.22),
    "NF4 to bf16": Prediction(0.138, 0.15, 0.165, 0.26),
    "NF4 to bf16, merge 1 x rank 16": Prediction(0.138, 0.155, 0.17, 0.49),
    "int8 to bf16, merge 1 x rank 16": Prediction(0.165, 0.18, 0.195, 0.42),
    "bf16 to NF4, merge 1 x rank 16": Prediction(0.139, 0.19, 0.22, 1.0),
    "NF4 to NF4, merge 1 x rank 16": Prediction(0.057, 0.20, 0.25, 1.012),
    "TIES of 4 x rank 16": Prediction(0.220, 1.5, 2.2, 56.0),
    "DARE of 4 x rank 16": Prediction(0.220, 0.55, 0.8, 2.0),
}


def costs(variants: Sequence[str], triton: str) -> dict[str, Any]:
    """Rows of the committed table of machine code, by name. variants: beginnings of names. triton: a version; of
    another than the table has, the newest is taken."""
    table = json.loads(TABLE.read_text("utf-8"))
    rows = {name: row for name, row in table.items() if name.startswith(tuple(variants))}
    return {name: versions.get(triton) or versions[max(versions)] for name, versions in rows.items()}
