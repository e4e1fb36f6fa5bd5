"""The table of `docs/kernels.md`, from the committed costs of the kernels' machine code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from docs.generate.markdown import between, table

PAGE: Final = Path(__file__).resolve().parents[1] / "kernels.md"
COSTS: Final = PAGE.parents[1] / "kernels" / "benchmarks" / "results" / "sass.json"
_COLUMNS: Final = {
    "instructions": "instructions per element",
    "registers": "registers",
    "spills": "spills",
    "shared": "shared bytes",
    "exchanges": "exchanges",
    "widest": "widest access, bytes",
}


def page() -> str:
    costs: dict[str, dict[str, dict[str, float]]] = json.loads(COSTS.read_text("utf-8"))
    rows = [[name, *(_cell(versions, column) for column in _COLUMNS)] for name, versions in costs.items()]
    return between(PAGE.read_text("utf-8"), "costs", list(table(["kernel", *_COLUMNS.values()], rows)))


def _cell(versions: dict[str, dict[str, float]], column: str) -> str:
    """One number if all versions of Triton agree, else all, the oldest first."""
    found = [f"{row[column]:g}" for row in versions.values()]
    return found[0] if len(set(found)) == 1 else ", ".join(found)
