"""The tables of docs/benchmarks.md, from the JSON files in `results`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"
BEGIN: Final = "<!-- benchmarks: written by make bench -->\n"
END: Final = "<!-- end of benchmarks -->\n"
_PEERS: Final = ("PEFT", "mergekit", "plain torch")
_ADAPTERS: Final = {"qv16": "q and v, rank 16", "all16": "all linear, rank 16", "all64": "all linear, rank 64"}


def shown(page: str) -> str:
    """Return the text between the markers. Raises ValueError if they are missing."""
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)]


def with_tables(page: str, tables: str) -> str:
    """Replace the text between the markers. Raises ValueError if they are missing."""
    return page[: page.index(BEGIN) + len(BEGIN)] + tables + page[page.index(END) :]


def tables(results: Path = RESULTS) -> str:
    """Return the tables, or a sentence if nothing has been measured."""
    parts = []
    for name, render in (("merge", _merge), ("compose", _compose), ("sparse7b", _sparse)):
        path = results / f"{name}.json"
        if path.exists():
            record = json.loads(path.read_bytes())
            parts.append("\n".join([*render(record), "", _machine(record), ""]))
    return "\n".join(parts) if parts else "Nothing has been measured yet.\n"


def _merge(record: dict[str, Any]) -> Iterator[str]:
    peers = [name for name in _PEERS if name not in record["skipped"]]
    slower = " | ".join(f"{name}: times slower" for name in peers)
    yield f"| merge into 1.1 B bf16 | seconds | times `cp` | peak MB | {slower} |"
    yield "|---|" + "---|" * (3 + len(peers))
    for row in record["rows"]:
        ours = row["contestants"]["lora-reg"]
        slower = " | ".join(f"{row['faster_than'][name]:.1f}" for name in peers)
        yield (
            f"| {_ADAPTERS[row['adapter']]} | {ours['seconds']:.2f} | {row['times_cp']:.2f} | {ours['peak_mb']:.0f} "
            f"| {slower} |"
        )
    for name, reason in record["skipped"].items():
        yield f"\nWithout {name}: {reason}"


def _compose(record: dict[str, Any]) -> Iterator[str]:
    yield "| compose 8 adapters of rank 16 | seconds | peak MB | PEFT: times slower | call alone: times slower |"
    yield "|---|---|---|---|---|"
    svd = record["svd"]
    ours, peft = svd["ours"], svd["peft"]
    call = peft["combine_seconds"] / peft["modules"] / (ours["combine_seconds"] / svd["modules"])
    process = f"{peft['seconds'] / ours['seconds']:.0f}" if "seconds" in peft else f"of {peft['modules']} modules"
    yield f"| svd | {ours['seconds']:.2f} | {ours['peak_mb']:.0f} | {process} | {call:.0f} |"
    for row in record["rows"]:
        model = "" if row["model"] == "1.1 B" else f", {row['model']} model"
        ours = row["ours"]
        yield (
            f"| {row['method']}{model} | {ours['seconds']:.2f} | {ours['peak_mb']:.0f} | {row['faster']:.1f} "
            f"| {row['call_faster']:.1f} |"
        )


def _sparse(record: dict[str, Any]) -> Iterator[str]:
    yield "| merge into 7 B bf16, sparse files | seconds | peak MB | GB written |"
    yield "|---|---|---|---|"
    for row in record["rows"]:
        yield f"| q and v, rank 16 | {row['seconds']:.0f} | {row['peak_mb']:.0f} | {row['written_bytes'] / 1e9:.1f} |"


def _machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    runs = "one run" if record["runs"] == 1 else f"medians of {record['runs']} interleaved runs"
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, {machine['system']}; whole "
        f"processes, {runs}; other processes used {record['others']:.0%} of the machine."
    )
