"""python -m benchmarks.devices: whole operations on a GPU against the CPU of the same machine.

Merges (plain, onto NF4, to NF4), a composition by TIES and an extraction, on both devices, one after the other in one
process; the first operation on the GPU loads torch and compiles, and is repeated. Lines are written as soon as they are
known; nothing new begins after the deadline. Results of merges are compared byte by byte.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

import numpy as np

from benchmarks import fixtures
from benchmarks.machine import machine, versions
from lora_contract.devices import Device
from lora_kernels.composing import compose_folders
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.devices.cuda import find_device
from lora_kernels.extracting import extract_folders
from lora_kernels.merging import merge_folder

MODELS: Final = {
    "7b": fixtures.LLAMA_7B,
    "1b": fixtures.LLAMA_1B,
    "tiny": fixtures.Llama(2, 64, 160, 4, 2, 96),
}
_COMPOSED: Final = 4
_COMPARED: Final = 1 << 24

Run = Callable[[Path, Any], Any]


class Operation(NamedTuple):
    """run: called with the folder to write and the device; returns the report."""

    name: str
    run: Run


def operations(model: str) -> Iterator[Operation]:
    shape = MODELS[model]
    base = fixtures.base(f"devices-{model}", shape)
    adapter = fixtures.adapter(f"devices-{model}-16", shape, rank=16, targets=fixtures.ALL)
    for name, options in (("merge", {}), ("merge onto NF4", {"onto": "nf4"}), ("merge to NF4", {"dtype": "nf4"})):
        yield Operation(name, _merge(base, adapter, options))
    composed = [
        fixtures.adapter(f"devices-{model}-c{n}", shape, rank=16, targets=fixtures.ALL, seed=n)
        for n in range(_COMPOSED)
    ]
    yield Operation(
        "compose by TIES",
        lambda out, device: compose_folders([(one, 1.0) for one in composed], out, method="ties_svd", device=device),
    )
    tuned = fixtures.root() / f"devices-{model}-tuned"
    if not tuned.exists():
        merge_folder(base, [(adapter, 1.0)], tuned, min_kept=None)
    yield Operation("extract", lambda out, device: extract_folders(tuned, base, out, rank=16, device=device))


def measure(operation: Operation, scratch: Path, devices: tuple[Any, Any], rounds: int) -> dict[str, Any]:
    """Seconds on both devices, the least of the rounds, and how the results differ."""
    seconds: list[float] = []
    reports = []
    for number, device in enumerate(devices):
        taken = []
        for _ in range(rounds):
            out = scratch / str(number)
            shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            reports.append(operation.run(out, device))
            taken.append(time.perf_counter() - start)
        seconds.append(min(taken))
    row = {
        "operation": operation.name,
        "cpu_seconds": seconds[0],
        "seconds": seconds[1],
        "times": seconds[0] / seconds[1],
    }
    execution = reports[-1].execution
    return {**row, "backend": execution.backend, "processor": execution.processor, **_difference(scratch)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices", description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="1b")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--deadline", type=float, default=480.0, metavar="SECONDS", help="begin nothing new afterwards")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines (default: results/devices-MODEL.jsonl)")
    parser.add_argument("--dry", action="store_true", help="use the CPU's memory as the device: nothing is measured")
    given = parser.parse_args(arguments)
    found = find_device()
    if isinstance(found, str) and not given.dry:
        print(f"Nothing was measured: {found}.", file=sys.stderr)
        return 1
    start, device = time.perf_counter(), Accelerator("cpu", "torch") if given.dry else Accelerator("cuda")
    cpu: Device = "cpu"
    path = given.out or Path(__file__).parent / "results" / f"devices-{given.model}.jsonl"
    with path.open("w", encoding="utf-8") as file, tempfile.TemporaryDirectory(dir=fixtures.root()) as scratch:
        _line(
            file, {"machine": machine(), "versions": versions("torch", "numpy"), "dry": given.dry, "model": given.model}
        )
        for operation in operations(given.model):
            if time.perf_counter() - start > given.deadline:
                _line(file, {"operation": operation.name, "skipped": "the deadline had passed"})
                continue
            _line(file, measure(operation, Path(scratch), (cpu, device), given.rounds))
    return 0


def _merge(base: Path, adapter: Path, options: dict[str, Any]) -> Run:
    return lambda out, device: merge_folder(base, [(adapter, 1.0)], out, min_kept=None, device=device, **options)


def _difference(scratch: Path) -> dict[str, int]:
    """Bytes of the weight files, and how many of them differ."""
    size = differing = 0
    for path in sorted((scratch / "0").glob("*.safetensors")):
        one, other = (np.memmap(scratch / side / path.name, np.uint8, "r") for side in ("0", "1"))
        for start in range(0, len(one), _COMPARED):
            differing += int(np.count_nonzero(one[start : start + _COMPARED] != other[start : start + _COMPARED]))
        size += len(one)
    return {"bytes": size, "differing": differing}


def _line(file: TextIO, row: dict[str, Any]) -> None:
    text = json.dumps(row)
    print(text, flush=True)
    file.write(text + "\n")
    file.flush()


if __name__ == "__main__":
    sys.exit(main())
