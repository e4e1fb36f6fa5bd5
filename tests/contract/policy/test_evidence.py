"""What people read of a layer in which nothing was found."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from lora_contract.policy.evidence import describe_evidence
from lora_contract.validation import Layer, LayerResult


@pytest.mark.parametrize(
    ("layer", "facts", "sentence"),
    [
        ("structure", {"tensors": 56, "max_rank": 8}, "56 tensors fit the base; the largest rank is 8."),
        ("structure", {"tensors": 4, "max_rank": None}, "4 tensors fit the base."),
        ("tokenizer", {"brings": False}, "It has no tokenizer of its own; the base's is used."),
        (
            "serveability",
            {"runtimes": {"vllm": {"state": "serves"}, "tgi": {"state": "refuses"}, "sglang": {"state": "serves"}}},
            "Servable on vllm, sglang.",
        ),
        ("numbers", {"modules": []}, "It updates no weights."),
        (
            "numbers",
            {"modules": [{"share": 0.125}, {"share": None}, {"share": 0.31}]},
            "3 updates; the largest has 0.31 times the norm of its weight.",
        ),
        ("effect", {"keys": 56, "divergence": 0.52}, "All 56 keys took effect; its outputs diverge from the base's by 0.52 nats."),
        (
            "agreement",
            {"forms": {"float32": {"divergence": 4.7e-13}, "float16": {"refused": "too large"}}},
            "Divergence of merged and unmerged, in nats: float32 5e-13.",
        ),
        ("agreement", {"forms": {"float32": {"refused": "a prefix"}}}, "It has no merged form."),
        ("quality", {"acme/sql": {"loss": 2.225, "base": 3.717}}, "Loss 2.2250 on acme/sql (base: 3.7170)."),
        ("behaviour", {"acme/qa": 12}, "As expected: 12 answers of acme/qa."),
        (
            "behaviour",
            {"acme/qa": 12, "pick.acc": {"value": 0.75, "base": 0.25}, "say.ppl": {"value": None, "base": 12.5}},
            "As expected: 12 answers of acme/qa; pick.acc is 0.75 (base: 0.25); say.ppl is not finite (base: 12.5).",
        ),
        (
            "behaviour",
            {f"t{number}.acc": {"value": 1.0, "base": 0.5} for number in range(6)},
            "; ".join(f"t{number}.acc is 1 (base: 0.5)" for number in range(4)) + "; 2 more task metrics.",
        ),
    ],
)  # fmt: skip
def test_a_layer_tells_what_was_looked_at(layer: Layer, facts: dict[str, Any], sentence: str) -> None:
    assert describe_evidence(layer, LayerResult("passed", facts=facts)) == sentence


@pytest.mark.parametrize("layer", sorted({*get_args(Layer)} - {"behaviour"}))
def test_a_report_of_another_suite_is_readable(layer: Layer) -> None:
    assert describe_evidence(layer, LayerResult("passed", facts={"unknown": 1})) == "No findings."
