"""What an operation lost of each module, worst first, from the report that the kernels made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_reg.cli.text import plural, table

if TYPE_CHECKING:
    from lora_reg.cli.state import State
    from lora_reg.client import Client
    from lora_reg.spec.wire.jobs import JobView

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
    """A sum in one line, then a table of the modules that lost most."""
    modules = sorted(body["modules"], key=lambda module: (-_error(module), module["module"]))
    kept = body.get("kept_energy")
    total = "" if kept is None else f", {kept:.4%} of the energy kept"
    rows = [(module["module"], str(module["rank"]), f"{_error(module):.2e}") for module in modules[:WORST]]
    more = len(modules) - len(rows)
    return [
        f"  {plural(len(modules), 'module')}{total}",
        *(f"    {line}" for line in table(("MODULE", "RANK", "RELATIVE ERROR"), rows)),
        *([f"    and {plural(more, 'module')} that lost no more"] if more else []),
    ]


def _error(module: dict[str, Any]) -> float:
    """||dW - dW'|| / ||dW||, Frobenius norms, of the module's update before and after."""
    if "relative_error" in module:
        return float(module["relative_error"])
    return math.sqrt(max(0.0, 1.0 - float(module["kept_energy"])))
