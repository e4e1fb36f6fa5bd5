"""A decision for GitHub Actions: annotations by workflow commands, and a job summary in Markdown.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions gives the commands and their escapes.
"""

from __future__ import annotations

from lora_contract.wire.gates import GateView
from lora_reg.formatting.gate import MARKS, verdict
from lora_reg.formatting.text import clean

_COMMANDS = {"failed": "error", "warned": "warning", "missing": "warning"}


def workflow_commands(view: GateView) -> list[str]:
    """One line for each check that did not pass, and one for the decision."""
    lines = [
        f"::{_COMMANDS[check.state]} title={_property(check.rule)}::{_data(check.message)}"
        for check in view.checks
        if check.state in _COMMANDS
    ]
    command = "notice" if view.allowed else "error"
    return [*lines, f"::{command} title=gate for {_property(view.tag)}::{_data(verdict(view))}"]


def summary(view: GateView) -> str:
    """Markdown for the file GITHUB_STEP_SUMMARY."""
    rows = [f"| {MARKS[check.state]} | {_cell(check.rule)} | {_cell(check.message)} |" for check in view.checks]
    head = [f"### {_cell(verdict(view))}", "", "| | rule | findings |", "|---|---|---|"]
    reports = ", ".join(f"`{report}`" for report in view.reports) or "none"
    return "\n".join([*head, *rows, "", f"Policy `{_cell(view.policy_name)}` {view.policy}; reports: {reports}.", ""])


def _data(text: str) -> str:
    return clean(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    """Escape text so that it stays in its cell and is not markup."""
    escaped = clean(text).replace("\\", "\\\\")
    for character in "|<>`*_[]#":
        escaped = escaped.replace(character, "\\" + character)
    return escaped
