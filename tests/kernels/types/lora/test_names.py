"""Checkpoints whose names are not those of the running model, and GPT-2, whose weights lie the other way round too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import read_model
from tests.kernels.types.lora.models import (
    SIZES,
    TOKENS,
    adapted_logits,
    assert_merges,
    assert_same_logits,
    load_model,
    loaded,
    parameters64,
    save_adapter,
    save_model,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

H = "lm_head.weight"


def test_gpt2_without_the_models_prefix(tmp_path: Path) -> None:
    """Conv1D layers, (in, out) on disk, and an output layer that gets a name beside names of an older layout."""

    def gpt2() -> Any:
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32)
        )

    base = save_model(gpt2(), tmp_path / "base", dtype=torch.float32)
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["c_attn", "c_proj", "lm_head", "wpe"], use_dora=True, fan_in_fan_out=True
    )
    adapter = save_adapter(gpt2(), config, tmp_path / "a", seed=1)
    want = adapted_logits(load_model(base), adapter, TOKENS)
    assert_same_logits(base, [(adapter, 1.0)], tmp_path / "out", TOKENS, want)
    parameters = parameters64(load_model(base))

    def loaded_apart(folder: Path) -> dict[str, Any]:
        assert read_model(folder).keys() == {*read_model(base), H}
        return loaded(folder)

    assert_merges(
        tmp_path,
        base,
        parameters,
        [(adapter, 1.0)],
        load=loaded_apart,
        transposed=lambda module: module.endswith(("c_attn", "c_proj")),
    )
    tensors = load_file(base / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): values for name, values in tensors.items()},
        base / "model.safetensors",
        {"format": "pt"},
    )
    assert_same_logits(base, [(adapter, 1.0)], tmp_path / "bare", TOKENS, want)


TEXT = {**SIZES, "head_dim": 16}
VISION = {**SIZES, "image_size": 28, "patch_size": 14}


def gemma3() -> Any:
    """A text model nested in another; its config says twice that the layers are tied."""
    config = transformers.Gemma3Config(
        text_config=TEXT, vision_config=VISION, image_token_index=63, boi_token_index=62, eoi_token_index=61
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def llava() -> Any:
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **VISION},
        image_token_index=63,
    )
    return transformers.LlavaForConditionalGeneration(config)


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"], ["embed_tokens"]])
@pytest.mark.parametrize("make", [gemma3, llava])
def test_names_that_transformers_changes_on_loading(tmp_path: Path, make: Callable[[], Any], targets: Any) -> None:
    torch.manual_seed(0)
    model = make()
    base = save_model(model, tmp_path / "base", dtype=torch.float32)
    assert not any(name.startswith("model.language_model") for name in read_model(base))
    tokens = torch.tensor([[1, 3, 5, 2, 0, 7]])

    def load(folder: Path) -> Any:
        return type(model).from_pretrained(folder, dtype=torch.float32).eval()

    adapter = save_adapter(model, LoraConfig(r=3, lora_alpha=5, target_modules=targets), tmp_path / "a", seed=1)
    want = adapted_logits(load(base), adapter, tokens)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", dtype="float32")
    with torch.no_grad():
        got, plain = load(tmp_path / "out")(tokens).logits, load(base)(tokens).logits
    assert (got - want).abs().max() < 1e-5
    assert (plain - want).abs().max() > 1e-2
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out"))
    if make is gemma3 and targets != "all-linear":
        assert after["tie_word_embeddings"] is after["text_config"]["tie_word_embeddings"] is False
    else:
        assert after == {**before, "dtype": "float32"}
