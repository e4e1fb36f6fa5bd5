"""What an operation lost of each module, worst first, from the report that the kernels made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_reg.cli.text import plural, table

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobView
    from lora_reg.cli.state import State
    from lora_reg.client import Client

WORST: Final = 8
"""Modules shown to people; `--json` and `lora-reg report --json` have them all."""


def of_job(client: Client, job: JobView) -> list[str]:
    """The lines of the report that the job made with its version."""
    from lora_reg.cli.views import name_of

    if job.result is None:
        return []
    reports = client.reports(name_of(job.result)).items
    return next((lines(report.body) for report in reports if report.kind == job.kind), [])


def tell_here(state: State, operation: str, output: Path, report: Any) -> None:
    """The answer of an operation that was done on this machine. report: a struct of the kernels."""
    from lora_reg.cli.output import to_object

    body = to_object(report)
    state.output().result(
        f"lora-reg/{operation}-local/1",
        {"output": str(output), "report": body},
        human=[f"{output}  {plural(len(body['files']), 'file')}", *lines(body)],
        quiet=[str(output)],
    )


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
