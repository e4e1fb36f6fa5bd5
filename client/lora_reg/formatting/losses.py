"""The approximation error of each module in the report of an operation, worst first. Pure."""

from __future__ import annotations

import math
from typing import Any, Final

from lora_reg.formatting.text import plural, table

WORST: Final = 8
"""Modules shown to people; `--json` and `lora-reg report --json` have them all."""


def lines(body: dict[str, Any]) -> list[str]:
    """A sum in one line, then a table of the modules that lost most, where losses can be told at all."""
    lost = [(error, module) for module in body["modules"] if (error := _error(module)) is not None]
    lost.sort(key=lambda item: (-item[0], item[1]["module"]))
    kept = _kept(body)
    total = "" if kept is None else f", {kept:.4%} of the energy kept"
    rows = [(module["module"], str(module["rank"]), f"{error:.2e}") for error, module in lost[:WORST]]
    more = len(lost) - len(rows)
    return [
        f"  {plural(len(body['modules']), 'module')}{total}",
        *(f"    {line}" for line in table(("MODULE", "RANK", "RELATIVE ERROR"), rows)),
        *([f"    and {plural(more, 'module')} that lost no more"] if more else []),
    ]


def _kept(item: dict[str, Any]) -> float | None:
    """The share of the energy that was kept; None where the method asks for no product that it could be a share of."""
    value = item.get("kept_energy", item.get("kept"))
    return None if value is None else float(value)


def _error(module: dict[str, Any]) -> float | None:
    """||dW - dW'|| / ||dW||, Frobenius norms, of the module's update before and after."""
    if "relative_error" in module:
        return float(module["relative_error"])
    kept = _kept(module)
    return None if kept is None else math.sqrt(max(0.0, 1.0 - kept))
