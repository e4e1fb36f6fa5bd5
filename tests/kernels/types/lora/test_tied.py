"""Models whose output layer is their input embedding: the merged model has the logits of the adapted one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, TrainableTokensConfig
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import read_model
from tests.kernels.types.lora.models import (
    SIZES,
    TOKENS,
    adapted_logits,
    assert_same_logits,
    load_model,
    save_adapter,
    save_model,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

E, H = "model.embed_tokens.weight", "lm_head.weight"


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=True))


APART: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "saved-head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved-embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved-both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "dora-embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "dora-both-tied": {"target_modules": ["embed_tokens"], "use_dora": True, "ensure_weight_tying": True},
    "head-tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 40]}},
}
TOGETHER: dict[str, dict[str, Any]] = {
    "pair": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "pairs": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 40]},
    "tokens-of-both": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [3, 40], "lm_head": [3, 40]},
    },
}


@pytest.mark.parametrize("name", APART)
def test_changed_apart_they_part(tmp_path: Path, name: str) -> None:
    base = save_model(llama(), tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(llama(), LoraConfig(r=3, lora_alpha=5, **APART[name]), tmp_path / "a", seed=1)
    assert_same_logits(
        base, [(adapter, 1.0)], tmp_path / "out", TOKENS, adapted_logits(load_model(base), adapter, TOKENS)
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert set(read_model(tmp_path / "out")) == {*read_model(base), H}
    before = read_model(base)[E][1]
    changed = {tensor for tensor in (E, H) if not np.array_equal(read_model(tmp_path / "out")[tensor][1], before)}
    both = {"both", "saved-both", "dora-both-tied"}
    assert changed == ({E, H} if name in both else {H} if "head" in name else {E})


@pytest.mark.parametrize("name", TOGETHER)
def test_changed_together_they_stay_one(tmp_path: Path, name: str) -> None:
    """What PEFT itself ties is merged once, where its own merge adds a pair twice to the one tensor."""
    base = save_model(llama(), tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(llama(), LoraConfig(r=3, lora_alpha=5, **TOGETHER[name]), tmp_path / "a", seed=1)
    report = assert_same_logits(
        base, [(adapter, 1.0)], tmp_path / "out", TOKENS, adapted_logits(load_model(base), adapter, TOKENS)
    )
    assert set(read_model(tmp_path / "out")) == set(read_model(base))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert all("lm_head" in ignored or "base_layer" in ignored for ignored in report.ignored)
    assert bool(report.ignored) == (name in ("pair", "pairs", "saved"))


@pytest.mark.parametrize("name", ["pair", "saved"])
def test_tied_tensors_that_training_has_parted_are_refused(tmp_path: Path, name: str) -> None:
    """A move to another device parts PEFT's tied parameters, since each is given new storage."""
    base = save_model(llama(), tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(llama(), LoraConfig(r=3, lora_alpha=5, **TOGETHER[name]), tmp_path / "a", seed=1)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    head = next(key for key in sorted(tensors) if "lm_head" in key and "base_layer" not in key)
    tensors[head][1, 1] += 1
    save_file(tensors, path)
    with pytest.raises(RegistryError, match=r"differ, but .* ties them") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected" and caught.value.facts == {"tensor": head}
    assert not (tmp_path / "out").exists()
    config = adapter / "adapter_config.json"
    key = "modules_to_save" if name == "saved" else "target_modules"
    edit = {"ensure_weight_tying": False, key: ["embed_tokens", "lm_head"]}
    config.write_text(json.dumps({**json.loads(config.read_text()), **edit}))
    merge_folder(base, [(adapter, 1.0)], tmp_path / "apart", dtype="float32")
    merged = read_model(tmp_path / "apart")
    assert H in merged and not np.array_equal(merged[H][1], merged[E][1])


def test_trainable_tokens_alone(tmp_path: Path) -> None:
    base = save_model(llama(), tmp_path / "base", dtype=torch.float32)
    adapter = save_adapter(llama(), TrainableTokensConfig(token_indices=[3, 40, 63]), tmp_path / "a", seed=1)  # type: ignore[arg-type]
    want = adapted_logits(load_model(base), adapter, TOKENS)
    report = assert_same_logits(base, [(adapter, 1.0)], tmp_path / "out", TOKENS, want)
    assert set(read_model(tmp_path / "out")) == set(read_model(base))
    assert report.ignored == ("base_model.model.lm_head.trainable_tokens_delta",)


def test_adapters_add_up_on_each_side(tmp_path: Path) -> None:
    """Tokens of both layers first, then the head alone: the head has both changes, the embedding the first."""
    base = save_model(llama(), tmp_path / "base", dtype=torch.float32)
    tokens = save_adapter(llama(), LoraConfig(r=3, lora_alpha=5, **TOGETHER["tokens"]), tmp_path / "a", seed=1)
    head = save_adapter(llama(), LoraConfig(r=3, lora_alpha=5, **APART["head"]), tmp_path / "b", seed=2)
    merge_folder(base, [(tokens, 1.0)], tmp_path / "first", dtype="float32")
    merge_folder(tmp_path / "first", [(head, 0.5)], tmp_path / "second", dtype="float32")
    merge_folder(base, [(tokens, 1.0), (head, 0.5)], tmp_path / "both", dtype="float32")
    stepwise, both = read_model(tmp_path / "second"), read_model(tmp_path / "both")
    assert list(stepwise) == list(both) and H in both
    for name, (_, values) in both.items():
        np.testing.assert_allclose(values, stepwise[name][1], rtol=2.0**-22, atol=1e-7)


def test_index_names_the_new_tensor(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "base", max_shard_size="12KB")
    adapter = save_adapter(llama(), LoraConfig(r=3, lora_alpha=5, **APART["head"]), tmp_path / "a", seed=1)
    want = adapted_logits(load_model(tmp_path / "base"), adapter, TOKENS)
    assert_same_logits(tmp_path / "base", [(adapter, 1.0)], tmp_path / "out", TOKENS, want)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    before = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    assert index["weight_map"][H] == index["weight_map"][E] == before["weight_map"][E]
    assert index["metadata"]["total_size"] == before["metadata"]["total_size"] + 64 * 32 * 4


def test_head_that_the_files_hold_although_the_config_ties_it(tmp_path: Path) -> None:
    """transformers ties it again where both are equal, and no longer where they differ."""
    base = save_model(llama(), tmp_path / "base", dtype=torch.float32)
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, H: tensors[E].clone()}, base / "model.safetensors", {"format": "pt"})
    for name, config in {"apart": APART["head"], "together": TOGETHER["pair"]}.items():
        adapter = save_adapter(llama(), LoraConfig(r=3, lora_alpha=5, **config), tmp_path / name, seed=1)
        want = adapted_logits(load_model(base), adapter, TOKENS)
        assert_same_logits(base, [(adapter, 1.0)], tmp_path / f"{name}-out", TOKENS, want)
        stored = read_model(tmp_path / f"{name}-out")
        assert np.array_equal(stored[E][1], stored[H][1]) == (name == "together")


def test_encoder_and_decoder_that_share_an_embedding_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=32, d_ff=48, d_kv=16, num_layers=1, num_heads=2, vocab_size=64)
    )
    model.save_pretrained(tmp_path / "base")
    adapter = save_adapter(model, LoraConfig(r=3, target_modules=["shared"]), tmp_path / "a", seed=1)
    with pytest.raises(RegistryError, match="it is unknown how to untie them") as caught:
        merge_folder(tmp_path / "base", [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported"
    other = save_adapter(model, LoraConfig(r=3, target_modules=["q"]), tmp_path / "b", seed=1)
    assert merge_folder(tmp_path / "base", [(other, 1.0)], tmp_path / "q").kept is not None


def test_model_without_an_output_layer_has_nothing_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaModel(transformers.LlamaConfig(**SIZES, tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "base")
    adapter = save_adapter(model, LoraConfig(r=3, target_modules=["embed_tokens"]), tmp_path / "a", seed=1)
    report = merge_folder(tmp_path / "base", [(adapter, 1.0)], tmp_path / "out")
    assert [tensor.name for tensor in report.tensors] == ["embed_tokens.weight"]
    assert set(read_model(tmp_path / "out")) == set(read_model(tmp_path / "base"))
