"""A gate's decision as lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lora_contract.policy import Check
from lora_contract.wire.gates import CheckView, GateView
from lora_reg.formatting.text import Line, Tone, Word, table

MARKS: Final = {"passed": "ok", "failed": "FAILED", "warned": "warning", "missing": "missing"}
_TONES: Final[dict[str, Tone]] = {"passed": "good", "failed": "bad", "warned": "warning", "missing": "warning"}
_VERDICTS: Final[dict[bool | None, tuple[str, Tone]]] = {
    True: ("may become", "good"),
    False: ("may not become", "bad"),
    None: ("is not decided yet for", "warning"),
}


def checks(items: Iterable[Check | CheckView]) -> list[str]:
    return table(
        ("", "RULE", "FINDINGS"),
        [(Word(MARKS[item.state], _TONES[item.state]), item.rule, item.message) for item in items],
    )


def verdict(view: GateView) -> Line:
    """The decision and its reason in one sentence."""
    may, tone = _VERDICTS[view.allowed]
    return Line(f"{view.namespace}/{view.name}:v{view.number} ", Word(may, tone), f" {view.tag}: {view.reason}")


def gate(view: GateView) -> list[str]:
    target = f"v{view.holder_number} is {view.tag} now" if view.holder_number else f"no other version is {view.tag} now"
    where = f" of {view.policy_pattern}" if view.policy_pattern else ""
    return [f"policy {view.policy_name}{where}; {target}", "", *checks(view.checks), "", verdict(view)]
