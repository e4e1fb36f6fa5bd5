"""The committed example: its size, its figures, its texts, and that its script really trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest

from examples.tiny import train
from examples.tiny.evaluate import PROTOCOL, held_out_loss, load, read_records
from examples.tiny.languages import LANGUAGES, stream
from tests.support.testbed import ROOT, require_testbed

TINY = ROOT / "examples" / "tiny"
DOCUMENT = json.loads((TINY / "losses.json").read_text(encoding="utf-8"))
LOSSES: dict[str, dict[str, float]] = DOCUMENT["losses"]
# Another processor sums in another order; the figures hold to this across machines.
ACROSS_MACHINES = 1e-3


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_example_stays_small() -> None:
    files = [path for path in TINY.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 6_000_000


def test_the_base_is_a_sharded_bf16_llama_of_about_a_million_parameters() -> None:
    index = json.loads((TINY / "base" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"].values()) == {path.name for path in (TINY / "base").glob("*.safetensors")}
    assert len(set(index["weight_map"].values())) == 2
    assert index["metadata"]["total_size"] == 2 * index["metadata"]["total_parameters"]
    assert 900_000 <= index["metadata"]["total_parameters"] <= 1_100_000
    config = json.loads((TINY / "base" / "config.json").read_text(encoding="utf-8"))
    assert (config["dtype"], config["tie_word_embeddings"]) == ("bfloat16", False)
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_adapters_name_the_base_and_list_their_targets_in_order() -> None:
    for folder in [*(TINY / "adapters").iterdir(), *(TINY / "broken").iterdir()]:
        assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == train.BASE_ID
        assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.parametrize("name", ["base", *train.ADAPTERS])
def test_the_committed_weights_have_the_losses_told(name: str) -> None:
    model, tokenizer = load(TINY / "base", None if name == "base" else TINY / "adapters" / name)
    assert set(LOSSES[name]) == set(train.DOMAINS)
    for domain, told in LOSSES[name].items():
        found = held_out_loss(model, tokenizer, read_records(TINY / "data" / f"{domain}_eval.jsonl"))
        assert found == pytest.approx(told, abs=ACROSS_MACHINES), domain


def test_the_losses_tell_the_story() -> None:
    assert DOCUMENT["protocol"] == PROTOCOL
    queries = {name: figures["queries"] for name, figures in LOSSES.items()}
    assert queries["queries-v1"] < queries["base"] - 0.3
    assert queries["queries-v2"] < queries["queries-v1"] - 0.3
    assert queries["queries-v3"] > queries["base"] + 0.3
    assert LOSSES["logs"]["logs"] < LOSSES["base"]["logs"] - 0.3


def test_the_readme_shows_the_losses() -> None:
    readme = (TINY / "README.md").read_text(encoding="utf-8")
    for name, figures in LOSSES.items():
        row = [f"{figures[domain]:.3f}" for domain in train.DOMAINS]
        assert f"| {name} | {' | '.join(row)} |" in readme


def test_the_languages_are_the_same_on_every_machine(tmp_path: Path) -> None:
    train.write_data(tmp_path)
    for domain in train.DOMAINS:
        name = f"data/{domain}_eval.jsonl"
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes()


def test_another_seed_gives_other_texts_and_held_out_texts_are_left_out() -> None:
    first = list(islice(stream(list(LANGUAGES), house=0.5, seed="a"), 200))
    assert first == list(islice(stream(list(LANGUAGES), house=0.5, seed="a"), 200))
    assert first != list(islice(stream(list(LANGUAGES), house=0.5, seed="b"), 200))
    without = list(islice(stream(list(LANGUAGES), house=0.5, seed="a", without={first[0]}), 199))
    assert without == [text for text in first if text != first[0]][:199]


def test_balances_add_up() -> None:
    for page in islice(stream(["ledger"], house=0.0, seed="sums"), 50):
        lines = page.splitlines()[1:-1]
        balances = [int(line.rpartition("= ")[2]) for line in lines]
        amounts = [int(line.rpartition(" = ")[0].rpartition("  ")[2]) for line in lines]
        assert [after - before for before, after in pairwise(balances)] == amounts[1:]


def test_twenty_steps_lower_the_loss() -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load(TINY / "base")
    records = read_records(TINY / "data" / "logs_eval.jsonl")[:16]
    before = held_out_loss(model, tokenizer, records)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=train.ALL_LINEAR))
    texts = stream(["logs"], house=1.0, seed="test", without=set(records))
    trace = train.fit(adapted, tokenizer, texts, steps=20, learning_rate=5e-3)
    assert len(trace) == 20
    assert held_out_loss(adapted, tokenizer, records) < before - 0.3


def test_evaluation_does_not_depend_on_the_batch() -> None:
    model, tokenizer = load(TINY / "base")
    records = read_records(TINY / "data" / "plain_eval.jsonl")[:10]
    together = held_out_loss(model, tokenizer, records, batch_size=10)
    assert held_out_loss(model, tokenizer, records, batch_size=1) == pytest.approx(together, abs=1e-6)
    with pytest.raises(ValueError, match="no token to predict"):
        held_out_loss(model, tokenizer, [""])


@pytest.mark.parametrize(("name", "domain"), [(None, "python"), ("series-sql/v2", "sql")])
def test_evaluation_agrees_with_figures_that_others_made(name: str | None, domain: str) -> None:
    testbed = require_testbed()
    document = json.loads((testbed / "losses.json").read_text(encoding="utf-8"))
    told = (document["adapters"][name]["eval"] if name else document["base"])[domain]["loss"]
    model, tokenizer = load(testbed / "base", testbed / "adapters" / name if name else None)
    found = held_out_loss(model, tokenizer, read_records(testbed / "data" / f"{domain}_eval.jsonl"))
    assert found == pytest.approx(told, abs=ACROSS_MACHINES)


def test_the_command_prints_one_number() -> None:
    command = [
        sys.executable,
        str(TINY / "evaluate.py"),
        "--model",
        str(TINY / "base"),
        "--adapter",
        str(TINY / "adapters" / "logs"),
        "--data",
        str(TINY / "data" / "logs_eval.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": ""})
    assert float(done.stdout) == pytest.approx(LOSSES["logs"]["logs"], abs=ACROSS_MACHINES)
    assert done.stderr == ""
