"""Which servers take which adapters, by features of the config."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from lora_contract.adapter.config import parse_config
from lora_contract.adapter.facts import AdapterFacts
from lora_contract.serveability import MERGE, PLAIN, RUNTIMES, serveability

FACTS = AdapterFacts(
    peft_type="LORA", task_type="CAUSAL_LM", r=16, max_rank=16, ranks={"16": 8}, alpha=32.0, use_rslora=False,
    use_dora=False, dtypes={"F32": 16}, modules=8, targets={"q_proj": 8}, modules_to_save=[], saved_tensors=0,
    has_embeddings=False, has_biases=False, tensors=16, parameters=1, tensor_bytes=4, base=None, revision=None,
    peft_version=None, mergeable=True,
)  # fmt: skip


def states(facts: dict[str, Any] | None = None, **config: Any) -> dict[str, str]:
    document = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], **config}
    found = serveability(parse_config(json.dumps(document).encode()), msgspec.structs.replace(FACTS, **(facts or {})))
    return {name: one.state for name, one in found.items()}


def test_plain_lora_is_served_by_all() -> None:
    assert states() == dict.fromkeys(RUNTIMES, "serves")


@pytest.mark.parametrize(
    ("facts", "config", "refused", "wrong"),
    [
        ({"peft_type": "IA3"}, {}, set(RUNTIMES), set()),
        ({}, {"use_dora": True}, {"vllm", "sglang", "llama.cpp"}, {"lorax", "tgi"}),
        ({}, {"use_rslora": True}, set(), {"sglang", "llama.cpp"}),
        ({}, {"rank_pattern": {"q_proj": 8}}, set(), {"sglang", "lorax", "tgi", "llama.cpp"}),
        ({"modules_to_save": ["lm_head"], "saved_tensors": 1}, {}, {"vllm", "llama.cpp"}, {"sglang", "lorax", "tgi"}),
        ({}, {"init_lora_weights": "pissa"}, {"vllm"}, set()),
        ({"max_rank": 513}, {}, {"vllm"}, set()),
    ],
)
def test_what_a_feature_costs(
    facts: dict[str, Any], config: dict[str, Any], refused: set[str], wrong: set[str]
) -> None:
    found = states(facts, **config)
    assert {name for name, state in found.items() if state == "refuses"} == refused
    assert {name for name, state in found.items() if state == "wrong"} == wrong


@pytest.mark.parametrize(("rank", "bucket"), [(1, 1), (2, 8), (16, 16), (17, 32), (300, 320), (513, None)])
def test_the_rank_that_vllm_is_started_with(rank: int, bucket: int | None) -> None:
    document = {"peft_type": "LORA", "r": rank, "lora_alpha": 32}
    config = parse_config(json.dumps(document).encode())
    found = serveability(config, msgspec.structs.replace(FACTS, max_rank=rank))
    assert found["vllm"].max_lora_rank == bucket


def test_the_conversion_that_helps() -> None:
    def conversion(**config: Any) -> str | None:
        document = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, **config}
        return serveability(parse_config(json.dumps(document).encode()), FACTS)["sglang"].conversion

    assert (conversion(), conversion(use_rslora=True), conversion(use_dora=True)) == (None, PLAIN, MERGE)
