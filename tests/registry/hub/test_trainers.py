"""Real trainers, unmodified: `push_to_hub` in all its ways, and our own callback."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_contract.digest import Digest
from tests.registry.hub.clients import run
from tests.registry.hub.conftest import World
from tests.registry.site import unique
from tests.support.push import push


@pytest.fixture(scope="module")
def stem() -> str:
    return f"hub/{unique('run')}"


@pytest.fixture(scope="module")
def seen(world: World, stem: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("trainers")
    lines = b'{"text": "select 1"}\n{"text": "select 2"}\n'
    name = unique("texts")
    assert push(world.client, "hub", name, "dataset", {"data.jsonl": lines}).status_code == 201
    (work / "train.jsonl").write_bytes(lines)
    shutil.copytree(world.testbed / "base", work / "somebody" / "elses-base")
    arguments = {
        "work": str(work / "out"),
        "stem": stem,
        "server": world.service.url,
        "dataset": f"hub/{name}",
        "data": str(work / "train.jsonl"),
        "copy": str(work / "somebody" / "elses-base"),
    }
    found: dict[str, Any] = run(sys.executable, "trainer_session.py", arguments, endpoint=world.hub, home=work / "home")
    return found


def versions(world: World, repo: str) -> list[dict[str, Any]]:
    """Oldest first."""
    answer = world.client.get(f"/api/v1/repositories/{repo}/versions")
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items[::-1]


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_a_trainer_pushes_by_every_strategy(world: World, seen: dict[str, Any], stem: str, strategy: str) -> None:
    assert seen[strategy] is True
    found = versions(world, f"{stem}-{strategy.replace('_', '-')}")
    steps = [version["meta"].get("step") for version in found]
    assert steps == ([None] if strategy == "end" else ["2", "4", None])
    assert found[-1]["message"] == "End of training"
    for version in found:
        paths = {file["path"] for file in version["files"]}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= paths
        assert not any(
            re.search(r"training_args|optimizer|checkpoint|scheduler|rng_state|trainer_state", path) for path in paths
        )
        assert version["base"]["name"] == "tiny"
    assert "README.md" in {file["path"] for file in found[-1]["files"]}


def test_models_and_tokenizers_are_pushed_by_hand(world: World, seen: dict[str, Any], stem: str) -> None:
    assert (seen["by_hand"], seen["tokenizer"], seen["merged"]) == (True, True, True)
    (adapter,) = versions(world, f"{stem}-by-hand")
    assert "tokenizer.json" in {file["path"] for file in adapter["files"]}
    merged = versions(world, f"{stem}-merged")
    assert [version["kind"] for version in merged] == ["model", "model"]


def test_a_dataset_loads(seen: dict[str, Any]) -> None:
    assert seen["dataset"] == ["select 1", "select 2"]


def test_the_callback_pushes_with_the_facts_of_the_run(world: World, seen: dict[str, Any], stem: str) -> None:
    # The end of training has the content of the last save: the same version, which is tagged now.
    assert (seen["callback"], seen["callback_versions"]) == (True, [1, 2, 2])
    found = versions(world, f"{stem}-callback")
    last = found[-1]
    meta = last["meta"]
    assert last["tags"] == ["candidate"] and last["base"]["name"] == "tiny"
    assert (meta["step"], meta["args.learning_rate"], meta["owner"]) == ("4", "0.01", "me")
    assert [step for step, _ in json.loads(meta["loss_curve"])] == [1, 2, 3, 4]
    assert meta["data.train"] == str(Digest.of(b'{"text": "select 1"}\n{"text": "select 2"}\n'))
    assert meta["data.train.records"] == "4"
    if (Path(__file__).parents[3] / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", meta["git.commit"])
    assert {"version.peft", "version.transformers"} <= set(meta)
    assert next(version["meta"]["step"] for version in found) == "2"
    assert seen["content"] == "tiny"
