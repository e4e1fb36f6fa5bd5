"""report: measurements of a version, and the verdicts of the policies that govern tags of its repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.gates import GateView
    from lora_contract.wire.repositories import VersionView
    from lora_reg.client import Client


@click.command(
    cls=Command, examples=("lora-reg report acme/sql-writer:candidate", "lora-reg report acme/sql-writer:v3 --json")
)
@click.argument("ref")
@pass_state
def report(state: State, ref: str) -> None:
    """Show what validations measured, and the verdict of the policy.

    The verdict is that of each policy that governs a tag of the repository, from the reports there are: nothing is run.
    """
    from lora_reg.formatting import reports

    client = state.client()
    view = client.version(ref)
    found = client.reports(f"{view.namespace}/{view.name}@{view.digest}").items
    output = state.output()
    if not found:
        output.note(f"There is no report on {ref} yet.")
    judged = _verdicts(client, view) if found and view.kind == "adapter" else []
    lines = [line for report in found for line in (*reports.report(report), "")]
    output.result(
        "lora-reg/report-list/1",
        {"items": found, "verdicts": judged},
        human=[*lines, *reports.verdicts(judged)] if judged else lines[:-1],
        quiet=[report.id for report in found],
    )


def _verdicts(client: Client, view: VersionView) -> list[GateView]:
    """Try each policy that governs a tag of the repository; a trial stores nothing. Empty if the caller may not."""
    from lora_contract.errors import RegistryError
    from lora_contract.policy.pattern import governing, parse_pattern

    try:
        documents = {policy.pattern: policy.document for policy in client.policies().items if policy.document}
        named = {tag for tag in (parse_pattern(pattern)[2] for pattern in documents) if "*" not in tag}
        tags = sorted(named | set(client.repository(f"{view.namespace}/{view.name}").tags))
        subject = f"{view.namespace}/{view.name}@{view.digest}"
        found = []
        for tag in tags:
            pattern = governing(documents, view.namespace, view.name, tag)
            if pattern is not None:
                found.append(client.gate(subject, tag, document=documents[pattern], start=False))
        return found
    except RegistryError as error:
        if error.code in ("forbidden", "not-found"):
            return []
        raise
