"""What people read of a report."""

from __future__ import annotations

import msgspec
import pytest

from lora_contract.validation import LayerResult, TaskMetric, TaskResult, Validation
from lora_contract.wire.jobs import ReportView
from lora_reg.formatting import reports as views
from lora_reg.formatting.views import fact


def test_a_report_shows_each_metric_of_its_tasks() -> None:
    metrics = {"acc": TaskMetric(0.75, 0.125, 0.25, 0.125), "word_perplexity": TaskMetric(12.5, None, None, None)}
    facts = {"pick.acc": {"value": 0.75, "base": 0.25}}
    body = Validation(
        version="sha256:aa", base="sha256:bb", datasets={}, environment={"lm_eval": "0.4.13"},
        layers={"behaviour": LayerResult("passed", facts=facts)}, tasks={"pick": TaskResult("sha256:cc", 8, metrics)},
    )  # fmt: skip
    view = ReportView(
        "job", "validate", f"sha256:{'a' * 64}", "2026-01-01T00:00:00Z", True, [], msgspec.to_builtins(body)
    )
    lines = [line.split() for line in views.report(view)]
    assert ["behaviour", "passed", "pick.acc", "is", "0.75", "(base:", "0.25)."] in lines
    assert ["TASK", "METRIC", "BASE", "VALUE", "RECORDS"] in lines
    assert ["pick", "acc", "0.25", "±", "0.12", "0.75", "±", "0.12", "8"] in lines
    assert ["pick", "word_perplexity", "-", "12.5", "8"] in lines
    without = msgspec.to_builtins(msgspec.structs.replace(body, tasks={}))
    assert "TASK" not in "".join(views.report(msgspec.structs.replace(view, body=without)))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"text_encoder": 6, "unet": 41}, "text_encoder: 6, unet: 41"),
        ({str(number): number for number in range(9)}, "9 entries"),
        (["q_proj", "v_proj"], "q_proj, v_proj"),
        (0.5, "0.5"),
        (True, "yes"),
        *((nothing, None) for nothing in (None, False, 0, [], {}, "")),
    ],
)
def test_a_fact_is_one_line(value: object, shown: str | None) -> None:
    assert fact(value) == shown
