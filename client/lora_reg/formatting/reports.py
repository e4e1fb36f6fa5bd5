"""Reports of validations and other jobs as lines, and the verdicts of policies on them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lora_contract import decoding
from lora_contract.validation import Validation
from lora_contract.wire.gates import GateView
from lora_contract.wire.jobs import ReportView
from lora_reg.formatting.text import Line, Tone, Word, fields, indented, short, table, when
from lora_reg.formatting.views import fact

_TONES: Final[dict[str, Tone]] = {"passed": "good", "failed": "bad"}


def report(view: ReportView) -> list[str]:
    """A report in full. It measures; whether that is good enough for a tag is the decision of a policy."""
    outcome = Word("passed", "good") if view.passed else Word("failed", "bad")
    if view.kind == "validate":
        outcome = Word("measured") if view.passed else Word("measured, with failed layers", "bad")
        return [Line(f"{view.kind}  ", outcome, f"  {short(view.version)}"), *_validation(view)]
    lines = [
        Line(f"{view.kind}  ", outcome, f"  {short(view.version)}"),
        *fields(
            [
                ("report", view.id),
                ("created", when(view.created_at)),
                *((name.replace("_", " "), fact(value)) for name, value in view.body.items()),
            ]
        ),
    ]
    return lines + [Line(f"  {finding.severity}: {finding.message}", hang=4) for finding in view.findings]


def verdicts(views: Iterable[GateView]) -> list[str]:
    """What the policies that govern tags of the repository decide about the version."""
    rows = [
        (
            view.tag,
            {True: Word("allowed", "good"), False: Word("refused", "bad"), None: Word("undecided", "warning")}[
                view.allowed
            ],
            view.policy_name,
            view.reason,
        )
        for view in views
    ]
    return table(("TAG", "VERDICT", "POLICY", "REASON"), rows)


def _validation(view: ReportView) -> list[str]:
    """The measurements: states of the layers, losses on each dataset."""
    from lora_contract.policy.evidence import describe_evidence

    found = decoding.convert(view.body, Validation)
    layers = [
        (
            name,
            Word(layer.state, _TONES.get(layer.state)),
            layer.reason or " ".join(f.message for f in layer.findings) or describe_evidence(name, layer),
        )
        for name, layer in found.layers.items()
    ]
    losses = [
        (one.role, one.name, f"{one.base_loss:.4f}", f"{one.loss:.4f}", str(len(one.tokens)))
        for one in found.evaluations
    ]
    answers = [(one.name, f"{one.met} of {one.asked}") for one in found.answers.values()]
    parts = (
        table(("LAYER", "STATE", "FINDINGS"), layers),
        table(("ROLE", "DATASET", "BASE", "LOSS", "RECORDS"), losses),
        table(("DATASET", "EXPECTED ANSWERS"), answers),
        tasks(found),
    )
    by = ", ".join(f"{name} {value}" for name, value in found.environment.items() if value)
    head = fields([("report", view.id), ("created", when(view.created_at)), ("made by", by)])
    return [*head, *(line for part in parts if part for line in ("", *indented(part)))]


def tasks(found: Validation) -> list[str]:
    """The metrics of tasks of lm-evaluation-harness; empty if none was run."""
    rows = [
        (task, metric, _measured(one.base, one.base_stderr), _measured(one.value, one.stderr), str(result.records))
        for task, result in found.tasks.items()
        for metric, one in result.metrics.items()
    ]
    return table(("TASK", "METRIC", "BASE", "VALUE", "RECORDS"), rows) if rows else []


def _measured(value: float | None, error: float | None) -> str:
    told = "-" if value is None else f"{value:.4g}"
    return told if error is None else f"{told} ± {error:.2g}"
