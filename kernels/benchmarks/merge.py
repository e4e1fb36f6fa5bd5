"""`merge --local` against cp, PEFT, mergekit and plain torch: 1.1 billion parameters, whole processes, warm cache."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import exact, fixtures
from benchmarks.options import Options
from benchmarks.peers import mergekit
from benchmarks.process import Usage, interleaved, measure, python

# (maximum time relative to cp, minimum speedup over PEFT and mergekit)
BARS: Final = {"qv16": (1.8, 8), "all16": (2.5, 10), "all64": (3.5, 7)}
PEAK_MB: Final = 100
# Blocks whose tensors are compared with float64: the first, one in the middle, the last.
_COMPARED: Final = (0, 10, 21)
_PEERS: Final = Path(__file__).parent / "peers"
OURS: Final = "lora-reg"

Command = Callable[[Path, Path, Path], list[object]]


def lora_reg(base: Path, adapter: Path, out: Path) -> list[object]:
    main = "from lora_reg.cli.main import main; main()"
    return [*python("-c", main, "merge", "--local", "--base-dir"), base, adapter, "-o", out]


def contestants() -> tuple[dict[str, Command], dict[str, str]]:
    """The commands by name, and the reasons of those that cannot run here."""
    found: dict[str, Command] = {
        "cp": lambda base, _, out: ["cp", "-r", "--reflink=never", base, out],
        OURS: lora_reg,
        "PEFT": lambda base, adapter, out: [*python(_PEERS / "peft_merge.py"), base, adapter, out],
        "plain torch": lambda base, adapter, out: [*python(_PEERS / "torch_merge.py"), base, adapter, out],
    }
    try:
        mergekit.environment()
    except mergekit.NotInstalled as error:
        return found, {"mergekit": str(error)}
    found["mergekit"] = lambda base, adapter, out: mergekit.command(base, adapter, out, out.with_name("cache"))
    return found, {}


def run(options: Options, log: Callable[[str], None]) -> dict[str, Any]:
    """Raises `exact.WrongResult` before anything is timed, and CommandFailed."""
    base, adapters = fixtures.one_billion(), fixtures.adapters()
    commands, skipped = contestants()
    for name, reason in skipped.items():
        log(f"Without {name}: {reason}")
    with tempfile.TemporaryDirectory(dir=fixtures.root(), prefix=".merge.") as folder:
        scratch = Path(folder)

        def once(name: str, adapter: Path) -> Usage:
            for stale in ("out", "cache"):
                shutil.rmtree(scratch / stale, ignore_errors=True)
            return measure(commands[name](base, adapter, scratch / "out"), scratch, ours=name == OURS)

        checks: dict[str, dict[str, Any]] = {adapter_name: {} for adapter_name in adapters}
        for adapter_name, adapter in adapters.items():
            for name in [name for name in commands if name != "cp"]:
                once(name, adapter)
                try:
                    checked = exact.check_merge(base, adapter, scratch / "out", layers=_COMPARED)
                except exact.WrongResult as error:
                    raise exact.WrongResult(f"{adapter_name} by {name}: {error}") from None
                checks[adapter_name][name] = checked
                counts = "{differing} of {compared} elements are not correctly rounded".format(**checked)
                log(f"  {adapter_name:6} {name:12} {counts}")
        rows = []
        for adapter_name, adapter in adapters.items():
            log(f"{adapter_name}:")
            measured = interleaved({name: partial(once, name, adapter) for name in commands}, options.runs, log)
            for name, checked in checks[adapter_name].items():
                measured[name] |= checked
            rows.append({"adapter": adapter_name, "contestants": measured, **_against(adapter_name, measured)})
    return {"skipped": skipped, "mergekit": mergekit.VERSION, "rows": rows}


def _against(adapter: str, measured: dict[str, Any]) -> dict[str, Any]:
    """The ratios that have bars, and whether they are met."""
    ours = measured[OURS]
    times_cp, faster = BARS[adapter]
    relative = ours["seconds"] / measured["cp"]["seconds"]
    speedups = {
        name: value["seconds"] / ours["seconds"] for name, value in measured.items() if name not in ("cp", OURS)
    }
    bars = {
        f"at most {times_cp} times cp": relative <= times_cp,
        f"at most {PEAK_MB} MB": ours["peak_mb"] <= PEAK_MB,
        **{
            f"at least {faster} times faster than {name}": ratio >= faster
            for name, ratio in speedups.items()
            if name in ("PEFT", "mergekit")
        },
    }
    return {"times_cp": relative, "faster_than": speedups, "bars": bars}
