"""Hardware counters of a few cases, by ncu, each in a process of its own: the machine may have none, or refuse."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from typing import Any, Final

from benchmarks.gpu.cases import Case

# What decides the next step for each kind of kernel.
CHOSEN: Final = (
    "merge 1 x rank 16",
    "NF4 to NF4, merge 1 x rank 16",
    "TIES of 4 x rank 16",
    "NF4 to bf16, merge 1 x rank 16",
    "statistics of a tensor",
    "merge 4 x rank 16",
)
METRICS: Final = (
    "gpu__time_duration.sum",
    "sm__inst_executed.sum",
    "sm__inst_executed_pipe_alu.sum",
    "sm__inst_executed_pipe_fma.sum",
    "sm__inst_executed_pipe_fmaheavy.sum",
    "sm__inst_executed_pipe_lsu.sum",
    "sm__inst_executed_pipe_tensor.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "lts__t_sector_hit_rate.pct",
    "l1tex__t_sector_hit_rate.pct",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_lg_throttle_per_issue_active.ratio",
)


def program() -> str | None:
    """The path of ncu; None if the machine has none."""
    return shutil.which("ncu")


def read(ncu: str, case: Case, *, dry: bool, limit: float) -> dict[str, Any]:
    """The counters of each launch of the case's kernels, or why there are none. limit: seconds."""
    command = [
        ncu, "--clock-control", "none", "--csv", "--metrics", ",".join(METRICS),
        "--kernel-name", f"regex:^({'|'.join(case.kernels)})$", "--launch-count", str(2 * len(case.kernels)),
        sys.executable, "-m", "benchmarks.gpu", "--once", case.name, *(["--dry"] if dry else []),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"it took more than {limit:.0f} s"}
    launches = parse(done.stdout)
    if done.returncode or not launches:
        return {"failed": (done.stderr + done.stdout)[-600:]}
    return {"launches": launches}


def parse(text: str) -> list[dict[str, Any]]:
    """Launches in ncu's CSV, which follows whatever else was printed."""
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(launches.values())
