"""Adapters of the world through the registry: a head, and a vocabulary that was resized in training."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from lora_kernels.merging import merge_folder
from lora_kernels.resizing import resize_vocabulary_folder
from tests.support import service
from tests.support.adapters import read_draft, read_folder
from tests.support.command import Home
from tests.support.wild import require_wild

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = torch.tensor([[1, 3, 5, 66, 0, 2]])


def before(folder: Path) -> Path:
    resize_vocabulary_folder(require_wild("peft-resized-modules-to-save") / "base", folder, vocabulary=64)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A user of a service that holds the base as it was before its vocabulary was resized."""
    folder = tmp_path_factory.mktemp("wild")
    base = before(folder / "before")
    with service.in_process(folder / "data") as running, service.worker(running, folder / "worker.log"):
        user = Home(folder / "home", running.url)
        added = user.run("base", "add", "acme/llama", base, "--alias", "acme/base")
        assert added.status == 0, added.err
        yield user


def test_a_job_merges_a_head_as_the_local_merge_does(home: Home, tmp_path: Path) -> None:
    folder = require_wild("seq-cls-merge")
    assert home.run("base", "add", "heads/causal", folder / "base", "--alias", "acme/base").status == 0
    pushed = home.run("push", folder / "reward", "acme/reward", "--base", "heads/causal", "--json")
    assert pushed.status == 0, pushed.err
    shown = home.run("show", "acme/reward").out
    assert "LlamaForSequenceClassification" in shown
    merged = home.run("merge", "acme/reward", "--to", "acme/judge")
    assert merged.status == 0, merged.err
    assert home.run("pull", "acme/judge", "-o", tmp_path / "pulled").status == 0
    merge_folder(folder / "base", [(folder / "reward", 1.0)], tmp_path / "local")
    pulled, local = read_folder(tmp_path / "pulled"), read_folder(tmp_path / "local")
    assert {name: pulled[name] for name in local} == local
    facts = home.run("show", "acme/judge", "--json").document["facts"]
    assert facts["architecture"] == "LlamaForSequenceClassification"


def test_copies_are_ignored_by_the_job_and_its_report(home: Home, tmp_path: Path) -> None:
    folder = require_wild("embedding-copies")
    assert home.run("base", "add", "copies/llama", folder / "base", "--alias", "acme/base").status == 0
    pushed = home.run("push", folder / "adapter", "acme/copies", "--base", "copies/llama")
    assert pushed.status == 0, pushed.err
    assert home.run("show", "acme/copies", "--json").document["facts"]["copies"] == 2
    assert home.run("merge", "acme/copies", "--to", "acme/copies-merged").status == 0
    assert home.run("pull", "acme/copies-merged", "-o", tmp_path / "pulled").status == 0
    merge_folder(folder / "base", [(folder / "adapter", 1.0)], tmp_path / "local")
    name = "model.safetensors"
    assert (tmp_path / "pulled" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    report = home.run("report", "acme/copies-merged", "--json").out
    assert "base_model.model.lm_head.weight" in report


def test_a_resized_vocabulary_goes_the_way_that_the_error_names(home: Home, tmp_path: Path) -> None:
    adapter, base = require_wild("peft-resized-modules-to-save") / "adapter", before(tmp_path / "before")
    refused = home.run("push", adapter, "acme/resized", "--base", "acme/llama")
    assert refused.status == 6
    command = re.search(
        r"`lora-reg (base resize acme/llama --vocab 67 --to acme/llama-67)`", " ".join(refused.err.split())
    )
    assert command, refused.err
    made = home.run(*shlex.split(command[1]))
    assert made.status == 0, made.err
    pushed = home.run("push", adapter, "acme/resized", "--base", "acme/llama-67")
    assert pushed.status == 0, pushed.err
    assert home.run("merge", "acme/resized", "--to", "acme/resized-merged").status == 0
    assert home.run("pull", "acme/resized-merged", "-o", tmp_path / "merged").status == 0
    assert home.run("pull", "acme/llama-67", "-o", tmp_path / "base").status == 0
    resize_vocabulary_folder(base, tmp_path / "local", vocabulary=67)
    pulled, local = read_folder(tmp_path / "base"), read_folder(tmp_path / "local")
    assert {name: pulled[name] for name in local} == local
    load = transformers.LlamaForCausalLM.from_pretrained
    with torch.no_grad():
        wanted = (
            PeftModel.from_pretrained(load(tmp_path / "base"), str(adapter)).merge_and_unload().eval()(TOKENS).logits
        )
        found = load(tmp_path / "merged").eval()(TOKENS).logits
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    version = home.run("show", "acme/llama-67", "--json").document
    assert version["kind"] == "base" and version["recipe"]["operation"] == "resize-base"
    assert version["base"]["name"] == "llama" and version["facts"]["embedding_rows"] == 67
    again = home.run("base", "resize", "acme/llama", "--vocab", "67", "--to", "acme/llama-67", "--json")
    assert again.document["job"]["state"] == "done" and again.document["version"]["number"] == 1
    reproduced = home.run("reproduce", "acme/llama-67")
    assert reproduced.status == 0, reproduced.err
    lineage = home.run("lineage", "acme/resized-merged").out
    assert "acme/llama:v1" in lineage


def test_a_base_is_resized_with_rows_of_a_file(home: Home, tmp_path: Path) -> None:
    rows = require_wild("peft-resized-modules-to-save") / "adapter" / "adapter_model.safetensors"
    base = before(tmp_path / "before")
    options = ("--vocab", "67", "--rows", rows)
    made = home.run("base", "resize", "acme/llama", *options, "--to", "acme/llama-rows")
    assert made.status == 0, made.err
    assert home.run("pull", "acme/llama-rows", "-o", tmp_path / "pulled").status == 0
    local = home.run("base", "resize", "--local", base, *options, "-o", tmp_path / "local")
    assert local.status == 0, local.err
    pulled, own = read_folder(tmp_path / "pulled"), read_folder(tmp_path / "local")
    assert {name: pulled[name] for name in own} == own
    assert json.loads(own["config.json"])["vocab_size"] == 67
    for wrong, status in ((("--vocab", "64"), 2), (("--vocab", "60", "--rows", rows), 6)):
        assert home.run("base", "resize", "acme/llama", *wrong, "--to", "acme/none").status == status


def test_names_of_two_versions_of_transformers_meet(home: Home, tmp_path: Path) -> None:
    folder = require_wild("transformers5-vision-names")
    assert home.run("base", "add", "vision/vit", folder / "base", "--alias", "acme/base").status == 0
    older = _with_older_names(folder / "adapter", tmp_path / "older-adapter")
    made = {}
    for name, adapter, warned in (("today", folder / "adapter", False), ("older", older, True)):
        pushed = home.run("push", adapter, f"acme/vit-{name}", "--base", "vision/vit")
        assert pushed.status == 0, pushed.err
        assert ("names of an older transformers" in " ".join(pushed.err.split())) == warned
        assert home.run("merge", f"acme/vit-{name}", "--to", f"acme/vit-{name}-merged").status == 0
        assert home.run("pull", f"acme/vit-{name}-merged", "-o", tmp_path / name).status == 0
        made[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert made["today"] == made["older"]
    merge_folder(folder / "base", [(folder / "adapter", 1.0)], tmp_path / "local")
    assert (tmp_path / "local" / "model.safetensors").read_bytes() == made["today"]
    assert home.run("pull", "acme/vit-today", "-o", tmp_path / "adapter").status == 0
    load = transformers.ViTForImageClassification.from_pretrained
    torch.manual_seed(0)
    image = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        plain = load(folder / "base").eval()(image).logits
        wanted = PeftModel.from_pretrained(load(folder / "base"), str(tmp_path / "adapter")).eval()(image).logits
        found = load(tmp_path / "today").eval()(image).logits
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max() < (plain - wanted).abs().max()


def _with_older_names(adapter: Path, to: Path) -> Path:
    draft = read_draft(adapter)
    for new, old in (("vit.layers.", "vit.encoder.layer."), (".q_", ".attention.query_"), (".v_", ".attention.value_")):
        draft.tensors = {name.replace(new, old): value for name, value in draft.tensors.items()}
    draft.tensors = {name.replace("_proj", ""): value for name, value in draft.tensors.items()}
    draft.config["target_modules"] = ["query", "value"]
    return draft.write(to)


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 96,
}


def test_an_adapter_of_the_language_model_alone_is_pushed_on_the_whole_model(home: Home, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "projection_dim": 32, **SIZES}
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **SIZES}, vision_config=tower, image_token_index=95
    )
    whole = transformers.LlavaForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "base")
    text = transformers.LlamaForCausalLM(config.text_config).eval()
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    targets = ["q_proj", "v_proj", "down_proj"]
    adapted = get_peft_model(
        text, LoraConfig(r=3, lora_alpha=5, target_modules=targets, task_type="CAUSAL_LM", rank_pattern={"v_proj": 2})
    )
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    adapted.peft_config["default"].base_model_name_or_path = "acme/llama-text"
    adapted.save_pretrained(str(tmp_path / "adapter"))
    tokens = torch.tensor([[1, 3, 5, 66, 0, 2]])
    with torch.no_grad():
        wanted, plain = adapted.eval()(tokens).logits, whole(tokens).logits
    assert home.run("base", "add", "vision/llava", tmp_path / "base").status == 0
    refused = home.run("push", tmp_path / "adapter", "acme/text-only", "--base", "vision/llava")
    assert refused.status == 6
    said = " ".join(refused.err.split())
    assert "the base has its 6 modules, such as model.layers.0.mlp.down_proj, under model.language_model." in said
    assert "--prefix model.language_model" in said
    options = ("--base", "vision/llava", "--prefix", "model.language_model")
    pushed = home.run("push", tmp_path / "adapter", "acme/text-only", *options)
    assert pushed.status == 0, pushed.err
    version = home.run("show", "acme/text-only", "--json").document
    assert version["meta"] == {"prefix": "model.language_model"}
    again = home.run("push", tmp_path / "adapter", "acme/text-only", *options, "--json")
    assert again.document["created"] is False
    assert home.run("merge", "acme/text-only", "--to", "acme/text-only-merged").status == 0
    assert home.run("pull", "acme/text-only-merged", "-o", tmp_path / "merged").status == 0
    assert home.run("pull", "acme/text-only", "-o", tmp_path / "pulled").status == 0
    local = ("merge", "--local", "--base-dir", tmp_path / "base", tmp_path / "adapter")
    lost = home.run(*local, "-o", tmp_path / "none")
    assert lost.status == 6 and "under model.language_model" in " ".join(lost.err.split())
    here = home.run(*local, "--prefix", "model.language_model", "-o", tmp_path / "local")
    assert here.status == 0, here.err
    weights = "model.safetensors"
    assert (tmp_path / "local" / weights).read_bytes() == (tmp_path / "merged" / weights).read_bytes()
    load = transformers.LlavaForConditionalGeneration.from_pretrained
    with torch.no_grad():
        merged = load(tmp_path / "merged").eval()(tokens).logits
        served = PeftModel.from_pretrained(load(tmp_path / "base"), str(tmp_path / "pulled")).eval()(tokens).logits
    assert (plain - wanted).abs().max() > 1e-2
    for found in (merged, served):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
