"""Composition of eight adapters of rank 16 on all linear layers, by every method of PEFT, against PEFT.

`svd` is the bar. PEFT takes about ten minutes for it, so its time is first estimated from two blocks. If the estimate
is within the limit, it is measured in full, once; otherwise the time per module of the two blocks is reported. Methods
that decompose whole updates are compared on a smaller model. Times of a process include its start; `combine` is the
call alone, which reads and writes files in ours but not in PEFT's.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import exact, fixtures
from benchmarks.options import Options
from benchmarks.process import Usage, interleaved, measure, python

SVD_BAR: Final = 300
# Relative difference of the errors: both are optimal except for float32 rounding; float64's is far below.
_SAME_ERROR: Final = 1e-9
_PEERS: Final = Path(__file__).parent / "peers"
_RUNS: Final = 3
_DENSITY: Final = {"density": 0.5}
_SAMPLED: Final = [f"model.layers.0.{path}" for path in fixtures.LLAMA_1B.linear()]


@dataclass(frozen=True, slots=True)
class Case:
    """Comparison of a method's result with PEFT's.

    distance: maximum relative distance of the products, in the Frobenius norm. energy: maximum relative difference of
    their energies instead, if random numbers differ, or if updates of full rank are truncated so that many results are
    equally good. Without random numbers, energy above PEFT's is never wrong.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    distance: float | None = None
    energy: float | None = None
    seeded: bool = False


# Both are float32 sums of eight terms, in different orders.
_ROUNDING: Final = 1e-5
_FACTORWISE: Final = (
    Case("cat", distance=_ROUNDING),
    Case("linear", distance=_ROUNDING),
    Case("ties", _DENSITY, distance=_ROUNDING),
    Case("dare_linear", _DENSITY, energy=0.05, seeded=True),
    Case("dare_ties", _DENSITY, energy=0.05, seeded=True),
    Case("magnitude_prune", _DENSITY, distance=_ROUNDING),
)
_DENSE: Final = (
    Case("ties_svd", {**_DENSITY, "rank": 16}, energy=0.02),
    Case("dare_linear_svd", {**_DENSITY, "rank": 16}, energy=0.05, seeded=True),
    Case("dare_ties_svd", {**_DENSITY, "rank": 16}, energy=0.05, seeded=True),
    Case("magnitude_prune_svd", {**_DENSITY, "rank": 16}, energy=0.02),
)


def run(options: Options, log: Callable[[str], None]) -> dict[str, Any]:
    """Raises `exact.WrongResult` before a speed is reported, and CommandFailed."""
    with tempfile.TemporaryDirectory(dir=fixtures.root(), prefix=".compose.") as folder:
        bench = _Bench(Path(folder))
        result = {"svd": _svd(bench, options, log)}
        rows = []
        for cases, model, base, adapters in (
            (_FACTORWISE, "1.1 B", fixtures.one_billion(), fixtures.composed()),
            (_DENSE, "small", fixtures.base("small", fixtures.LLAMA_SMALL, shards=1), _small()),
        ):
            for case in cases:
                row = _row(bench, case, base, adapters, min(options.runs, _RUNS), log)
                rows.append({"method": case.name, "model": model, **row})
        return {**result, "rows": rows}


class _Bench:
    """Runs either program on adapters. Each has its own output folder, which is emptied before a run."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.combined: dict[str, list[float]] = {}

    def ours(self, case: Case, adapters: Sequence[Path]) -> Usage:
        return self._once("ours", "our_compose.py", case, adapters)

    def peft(self, case: Case, base: Path, adapters: Sequence[Path]) -> Usage:
        return self._once("peft", "peft_compose.py", case, [base, *adapters])

    def out(self, name: str) -> Path:
        return self.scratch / name

    def _once(self, name: str, script: str, case: Case, folders: Sequence[Path]) -> Usage:
        shutil.rmtree(self.out(name), ignore_errors=True)
        command = python(_PEERS / script, self.out(name), case.name, json.dumps(case.parameters), *folders)
        usage = measure(command, self.scratch, ours=name == "ours")
        self.combined.setdefault(name, []).append(json.loads(usage.output.splitlines()[-1])["combine"])
        return usage


def _svd(bench: _Bench, options: Options, log: Callable[[str], None]) -> dict[str, Any]:
    case = Case("svd", {"rank": 16})
    two, adapters = fixtures.composed("t", fixtures.LLAMA_TWO), fixtures.composed()
    two_base = fixtures.base("two", fixtures.LLAMA_TWO, shards=1)
    modules, sampled = (len(model.modules(fixtures.ALL)) for model in (fixtures.LLAMA_1B, fixtures.LLAMA_TWO))
    log("svd:")
    bench.ours(case, two)
    bench.peft(case, two_base, two)
    error = _errors(bench, two)
    log("  error: " + ", ".join(f"{name} {value:.12f}" for name, value in error.items()))
    if error["ours"] > error["peft"] * (1 + _SAME_ERROR):
        raise exact.WrongResult(f"svd: the error is {error['ours']!r}, and PEFT's {error['peft']!r}.")
    peft_seconds = bench.combined["peft"][-1] / sampled
    log(f"  PEFT: {peft_seconds:.2f} s per module, {peft_seconds * modules:.0f} s expected for all")
    measured = interleaved({"ours": lambda: bench.ours(case, adapters)}, options.runs, log)["ours"]
    ours_seconds = sorted(bench.combined["ours"][-options.runs :])[options.runs // 2]
    peft: dict[str, Any] = {"modules": sampled, "combine_seconds": peft_seconds * sampled}
    if peft_seconds * modules <= options.peft_limit:
        whole = bench.peft(case, fixtures.one_billion(), adapters)
        peft = {"modules": modules, "combine_seconds": bench.combined["peft"][-1], "seconds": whole.seconds}
        peft["peak_mb"] = whole.peak_mb
    per_module = peft["combine_seconds"] / peft["modules"]
    # Our whole process against PEFT's call alone, per module.
    faster = per_module / (measured["seconds"] / modules)
    return {
        "modules": modules,
        "ours": {**measured, "combine_seconds": ours_seconds},
        "peft": peft,
        "error": error,
        "faster": faster,
        "bars": {
            f"at least {SVD_BAR} times faster than PEFT's call": faster >= SVD_BAR,
            "error no larger than PEFT's": True,
        },
    }


def _row(
    bench: _Bench, case: Case, base: Path, adapters: Sequence[Path], runs: int, log: Callable[[str], None]
) -> dict[str, Any]:
    log(f"{case.name}:")
    bench.ours(case, adapters)
    bench.peft(case, base, adapters)
    compared = _compare(bench, case)
    log("  " + ", ".join(f"{what} {value:.2e}" for what, value in compared.items()))
    bench.combined.clear()
    contestants = {"ours": lambda: bench.ours(case, adapters), "peft": lambda: bench.peft(case, base, adapters)}
    measured = interleaved(contestants, runs, log)
    for name, values in bench.combined.items():
        measured[name]["combine_seconds"] = sorted(values)[runs // 2]
    faster, call = (measured["peft"][what] / measured["ours"][what] for what in ("seconds", "combine_seconds"))
    bars = {"at least as fast as PEFT": faster >= 1}
    return {"against_peft": compared, **measured, "faster": faster, "call_faster": call, "bars": bars}


def _errors(bench: _Bench, adapters: Sequence[Path]) -> dict[str, float]:
    """|D - result| / |D| over the sampled modules, D being the sum of the updates: of both programs, and the least
    possible. In float64, with squares summed over the modules.
    """
    results = {name: exact.products(bench.out(name), _SAMPLED) for name in ("ours", "peft")}
    parts = [exact.products(folder, _SAMPLED) for folder in adapters]
    squares = dict.fromkeys([*results, "least"], 0.0)
    total = 0.0
    for module in _SAMPLED:
        whole = np.sum([part[module] for part in parts], axis=0)
        energies = np.linalg.eigvalsh(whole @ whole.T if len(whole) <= whole.shape[1] else whole.T @ whole)
        total += float(energies.sum())
        squares["least"] += float(energies[:-16].sum())
        for name, result in results.items():
            squares[name] += float(np.square(whole - result[module]).sum())
    return {name: (square / total) ** 0.5 for name, square in squares.items()}


def _compare(bench: _Bench, case: Case) -> dict[str, float]:
    """Compare the result with PEFT's. Raises WrongResult."""
    ours, peft = (exact.products(bench.out(name), _SAMPLED) for name in ("ours", "peft"))
    energies = [sum(float(np.square(product).sum()) for product in side.values()) for side in (ours, peft)]
    excess = energies[0] / energies[1] - 1
    squares = sum(float(np.square(ours[module] - peft[module]).sum()) for module in _SAMPLED)
    distance = (squares / energies[1]) ** 0.5
    if case.distance is not None and not distance <= case.distance:
        raise exact.WrongResult(f"{case.name}: the product differs from PEFT's by {distance:.1e}.")
    if case.energy is not None and not (-case.energy <= excess and (excess <= case.energy or not case.seeded)):
        raise exact.WrongResult(f"{case.name}: the product's energy differs from PEFT's by {excess:+.1%}.")
    return {"distance": distance} if case.distance is not None else {"energy": excess}


def _small() -> list[Path]:
    return fixtures.composed("s", fixtures.LLAMA_SMALL)
