"""Merge of a sparse checkpoint of 7 billion parameters, in the memory of a small one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import exact, fixtures
from benchmarks.merge import PEAK_MB, lora_reg
from benchmarks.options import Options
from benchmarks.process import measure

_COMPARED: Final = (0, 31)


class NoSpace(Exception):
    """The disk has too little free space for the result."""


def run(_: Options, log: Callable[[str], None]) -> dict[str, Any]:
    """Run once, to measure memory. Raises NoSpace, `exact.WrongResult` and CommandFailed."""
    base = fixtures.sparse_base("sparse7b", fixtures.LLAMA_7B, shards=2)
    adapter = fixtures.adapter("qv16-7b", fixtures.LLAMA_7B, rank=16, targets=fixtures.QV)
    size = sum(path.stat().st_size for path in base.iterdir())
    free = shutil.disk_usage(base).free
    if free < size * 1.1:
        raise NoSpace(f"The result may take {size / 1e9:.1f} GB; {free / 1e9:.1f} GB are free.")
    with tempfile.TemporaryDirectory(dir=fixtures.root(), prefix=".sparse7b.") as folder:
        out = Path(folder) / "out"
        usage = measure(lora_reg(base, adapter, out), Path(folder), ours=True)
        checked = exact.check_merge(base, adapter, out, layers=_COMPARED)
        files = list(out.iterdir())
        written = sum(path.stat().st_size for path in files)
        allocated = sum(path.stat().st_blocks * 512 for path in files)
    log(f"  {usage.seconds:.1f} s, {usage.peak_mb:.0f} MB; {written / 1e9:.1f} GB, {allocated / 1e9:.1f} on disk")
    row = {
        "base_bytes": size,
        "written_bytes": written,
        "allocated_bytes": allocated,
        "seconds": usage.seconds,
        "cpu_seconds": usage.cpu_seconds,
        "peak_mb": usage.peak_mb,
        "bars": {f"at most {PEAK_MB} MB": usage.peak_mb <= PEAK_MB},
        **checked,
    }
    return {"rows": [row]}
