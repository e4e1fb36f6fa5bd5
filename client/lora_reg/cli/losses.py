"""Results of operations with the approximation error of each module, from the report that the kernels made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_reg.formatting.devices import device_line, device_lines
from lora_reg.formatting.losses import lines
from lora_reg.formatting.text import plural

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobView
    from lora_reg.cli.state import State
    from lora_reg.client import Client


def of_job(client: Client, job: JobView) -> list[str]:
    """Lines of the report that the job made on its version."""
    from lora_reg.formatting.views import name_of

    if job.result is None:
        return []
    reports = client.reports(name_of(job.result)).items
    body = next((report.body for report in reports if report.kind == job.kind), None)
    return [] if body is None else [*lines(body), *device_lines(body)]


def print_local(state: State, operation: str, output: Path, report: Any, *, device: str | None = None) -> None:
    """Print the result of an operation on this machine. report: a struct of the kernels. device: as requested."""
    from lora_reg.cli.output import to_object

    body = to_object(report)
    state.output().result(
        f"lora-reg/{operation}-local/1",
        {"output": str(output), "report": body},
        human=[
            f"{output}  {plural(len(body['files']), 'file')}",
            *lines(body),
            *([device_line(body["execution"])] if device not in (None, "cpu") else []),
        ],
        quiet=[str(output)],
    )
