"""The approximation error of each module in the report of an operation, worst first. Pure."""

from __future__ import annotations

import math
from typing import Any, Final

from lora_reg.formatting.text import indented, plural, table

WORST: Final = 8
"""Modules that are shown; `--json` and `lora-reg report --json` print all of them."""


def lines(body: dict[str, Any]) -> list[str]:
    """A summary in one line, then a table of the modules with the largest error, if errors are known."""
    lost = [(error, module) for module in body["modules"] if (error := _error(module)) is not None]
    lost.sort(key=lambda item: (-item[0], item[1]["module"]))
    kept = _kept(body)
    total = "" if kept is None else f", {kept:.4%} of the energy kept"
    rows = [(f"{error:.2e}", str(module["rank"]), module["module"]) for error, module in lost[:WORST]]
    more = len(lost) - len(rows)
    return [
        f"  {plural(len(body['modules']), 'module')}{total}",
        *indented(table(("ERROR", "RANK", "MODULE"), rows), 4),
        *([f"    and {plural(more, 'module')} with smaller errors"] if more else []),
    ]


def _kept(item: dict[str, Any]) -> float | None:
    """The share of the energy that was kept; None if the method defines no exact result to compare with."""
    value = item.get("kept_energy", item.get("kept"))
    return None if value is None else float(value)


def _error(module: dict[str, Any]) -> float | None:
    """The relative error ||dW - dW'|| / ||dW|| of a module's update, in Frobenius norms; None if it is unknown."""
    if "relative_error" in module:
        return float(module["relative_error"])
    kept = _kept(module)
    return None if kept is None else math.sqrt(max(0.0, 1.0 - kept))
