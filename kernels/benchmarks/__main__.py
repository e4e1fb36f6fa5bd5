"""python -m benchmarks [SUITE]: measure, write `results/SUITE.json`, and update the tables in the docs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from benchmarks import compose, drift, drift_table, merge, sparse7b, table
from benchmarks.exact import WrongResult
from benchmarks.gpu import page as gpu_page
from benchmarks.machine import OtherLoad, machine, versions
from benchmarks.options import Options
from benchmarks.process import ROOT, CommandFailed, environment, python

Suite = Callable[[Options, Callable[[str], None]], dict[str, Any]]

SUITES: Final[dict[str, Suite]] = {
    "merge": merge.run,
    "compose": compose.run,
    "sparse7b": sparse7b.run,
    "drift": drift.run,
}
# A run of fewer rounds is a trial and writes nothing.
RUNS: Final = 5
_ONCE: Final = ("sparse7b",)
# Suites that measure outputs, not speed.
_UNTIMED: Final = ("drift",)
# Tables between the markers of each page.
PAGES: Final = {
    "docs/benchmarks.md": table.tables,
    "docs/validation.md": drift_table.tables,
    "docs/kernels.md": gpu_page.tables,
}
# Share of the machine that other processes may use; beyond it, figures are noise and are not written.
NOISE: Final = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", nargs="?", default="all", choices=["all", *SUITES, "gpu", "table"])
    parser.add_argument("--runs", type=int, default=RUNS, help=f"rounds; with fewer than {RUNS} nothing is written")
    parser.add_argument("--peft-limit", type=float, default=Options().peft_limit, metavar="SECONDS")
    arguments = parser.parse_args()
    options = Options(arguments.runs, arguments.peft_limit)
    chosen = [arguments.suite] if arguments.suite in SUITES else list(SUITES) if arguments.suite == "all" else []
    try:
        for name in chosen:
            measure(name, options)
    except (WrongResult, CommandFailed, sparse7b.NoSpace) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    status = 0
    if arguments.suite in ("all", "gpu"):
        status = subprocess.run(python("-m", "benchmarks.gpu"), env=environment(ours=True), check=False).returncode
    for page, tables in PAGES.items():
        path = ROOT / page
        path.write_text(table.with_tables(path.read_text("utf-8"), tables()), encoding="utf-8")
    return status


def measure(name: str, options: Options) -> None:
    print(f"== {name}", flush=True)
    load = OtherLoad()
    result = SUITES[name](options, lambda line: print(line, flush=True))
    others = load.share()
    for row in [*result["rows"], result.get("svd", {})]:
        for bar, met in row.get("bars", {}).items():
            label = row.get("adapter") or row.get("method") or ("svd" if "modules" in row else name)
            print(f"  {label:20} {bar:44} {'met' if met else 'NOT met'}")
    if options.runs < RUNS:
        print("A trial: nothing is written.")
        return
    # A suite that runs once measures memory, which noise does not change.
    if others > NOISE and name not in (*_ONCE, *_UNTIMED):
        print(f"Other processes used {others:.0%} of the machine: these figures are noise and are not written.")
        return
    record = {
        "machine": machine(),
        "versions": versions("lora-reg", "numpy", "torch", "transformers", "peft", "safetensors", "bitsandbytes"),
        **({} if name in _UNTIMED else {"runs": 1 if name in _ONCE else options.runs, "others": others}),
        **result,
    }
    table.RESULTS.mkdir(exist_ok=True)
    path = table.RESULTS / f"{name}.json"
    path.write_text(json.dumps(_rounded(record), indent=1) + "\n", encoding="utf-8")
    print(f"Written to {path.relative_to(ROOT)}.")


def _rounded(value: Any) -> Any:
    """Round to six digits, more than the precision of a clock."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
