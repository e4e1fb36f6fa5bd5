"""Facts of the training, from files that a trainer left and anybody may have written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_contract.adapter.training import training_facts


def facts(**files: Any) -> dict[str, Any]:
    data = {
        f"{name}.json": text if isinstance(text, bytes) else json.dumps(text).encode() for name, text in files.items()
    }
    sizes = {name: len(text) for name, text in data.items()}
    return training_facts(sizes, lambda name, offset, length: data[name][offset : offset + length])


def test_what_a_trainer_leaves() -> None:
    history = [{"loss": 3.0, "step": 1}, {"loss": 2.5, "step": 2}, {"eval_loss": 2.6}, {"train_runtime": 9.0}]
    found = facts(
        trainer_state={"global_step": 2, "epoch": 1.0, "log_history": history, "is_local_process_zero": True},
        training_args={"learning_rate": 5e-3, "seed": 1, "optim": "adamw_torch", "hub_token": "hf_secret"},
    )
    assert found == {
        "steps": 2, "epochs": 1.0, "last_loss": 2.5, "last_eval_loss": 2.6, "learning_rate": 5e-3, "seed": 1,
        "optim": "adamw_torch",
    }  # fmt: skip


@pytest.mark.parametrize(
    "state", [b"", b"[]", b"{", b'{"epoch": 1, "epoch": 2}', b'{"global_step": {}, "log_history": 3, "epoch": true}']
)
def test_what_makes_no_sense_tells_nothing(state: bytes) -> None:
    assert facts(trainer_state=state) == {}


def test_without_files_there_is_nothing() -> None:
    assert facts() == {}
