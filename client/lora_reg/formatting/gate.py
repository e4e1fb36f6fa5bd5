"""A decision as lines for people."""

from __future__ import annotations

from collections.abc import Iterable

from lora_contract.policy import Check
from lora_contract.wire.gates import CheckView, GateView
from lora_reg.formatting.text import table

MARKS = {"passed": "ok", "failed": "FAILED", "warned": "warning", "missing": "missing"}


def checks(items: Iterable[Check | CheckView]) -> list[str]:
    return table(("", "RULE", "WHAT WAS FOUND"), [(MARKS[item.state], item.rule, item.message) for item in items])


def verdict(view: GateView) -> str:
    """The decision and its reason in one sentence."""
    may = {True: "may become", False: "may not become", None: "is not decided yet for"}[view.allowed]
    return f"{view.namespace}/{view.name}:v{view.number} {may} {view.tag}: {view.reason}"


def gate(view: GateView) -> list[str]:
    holder = f"v{view.holder_number} is {view.tag} now" if view.holder_number else f"no other version is {view.tag} now"
    where = f" of {view.policy_pattern}" if view.policy_pattern else ""
    return [f"policy {view.policy_name}{where}; {holder}", "", *checks(view.checks), "", verdict(view)]
