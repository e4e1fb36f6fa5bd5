"""What shares a tensor is read from the structure of a model's class: merges into tied models of any naming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import read_model
from tests.kernels.types.lora.models import adapted_logits, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
TOKENS = torch.tensor([[1, 3, 5, 63, 0, 2, 3, 17]])


def mamba() -> Any:
    return transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES, state_size=8))


def xlnet() -> Any:
    config = transformers.XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=2, d_inner=48)
    return transformers.XLNetLMHeadModel(config)


def xlm() -> Any:
    return transformers.XLMWithLMHeadModel(transformers.XLMConfig(vocab_size=64, emb_dim=32, n_layers=1, n_heads=2))


def bert() -> Any:
    config = transformers.BertConfig(**SIZES, num_attention_heads=2, intermediate_size=48)
    return transformers.BertForMaskedLM(config)


# Class, its input embedding, its output layer, a linear layer.
MODELS = {
    "mamba": (mamba, "backbone.embeddings", "lm_head", "in_proj"),
    "xlnet": (xlnet, "transformer.word_embedding", "lm_loss", "layer_1"),
    "xlm": (xlm, "transformer.embeddings", "pred_layer.proj", "q_lin"),
    "bert": (bert, "bert.embeddings.word_embeddings", "cls.predictions.decoder", "query"),
}


@pytest.mark.parametrize("case", ["embedding", "output", "saved-embedding", "saved-output"])
@pytest.mark.parametrize("name", MODELS)
def test_tied_layers_part_whatever_they_are_called(tmp_path: Path, name: str, case: str) -> None:
    make, embedding, output, linear = MODELS[name]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "base")
    layer = embedding if "embedding" in case else output
    wanted: dict[str, Any] = {"target_modules": [layer]}
    if case.startswith("saved"):
        wanted = {"target_modules": [linear], "modules_to_save": [layer]}
    adapter = save_adapter(model, LoraConfig(r=3, lora_alpha=5, **wanted), tmp_path / "a", seed=1)
    if (name, case) == ("bert", "saved-output"):
        # The layer's bias is saved with it, and tied as well.
        with pytest.raises(RegistryError, match=r"which the base ties to cls\.predictions\.bias") as caught:
            merge_folder(tmp_path / "base", [(adapter, 1.0)], tmp_path / "out")
        assert caught.value.code == "unsupported"
        return

    def load(folder: Path) -> Any:
        return type(model).from_pretrained(folder, dtype=torch.float32).eval()

    want = adapted_logits(load(tmp_path / "base"), adapter, TOKENS)
    merge_folder(tmp_path / "base", [(adapter, 1.0)], tmp_path / "out")
    with torch.no_grad():
        got, plain = load(tmp_path / "out")(TOKENS).logits, load(tmp_path / "base")(TOKENS).logits
    assert (got - want).abs().max() < 1e-5
    assert (plain - want).abs().max() > 1e-2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert f"{output}.weight" in read_model(tmp_path / "out")


def test_a_setting_that_the_config_leaves_out_is_the_class_default(tmp_path: Path) -> None:
    """transformers 4 writes no setting that has its default."""
    torch.manual_seed(0)
    model = mamba()
    model.save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    settings = json.loads(config.read_text())
    del settings["tie_word_embeddings"]
    config.write_text(json.dumps(settings))
    adapter = save_adapter(model, LoraConfig(r=3, target_modules=["embeddings"]), tmp_path / "a", seed=1)
    merge_folder(tmp_path / "base", [(adapter, 1.0)], tmp_path / "out")
    assert "lm_head.weight" in read_model(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("said", [None, True, False])
def test_an_unknown_architecture_is_refused_unless_it_says_that_nothing_is_tied(
    tmp_path: Path, said: bool | None
) -> None:
    torch.manual_seed(0)
    model = mamba()
    model.save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    settings = {**json.loads(config.read_text()), "architectures": ["NewForCausalLM"], "tie_word_embeddings": said}
    if said is None:
        del settings["tie_word_embeddings"]
    config.write_text(json.dumps(settings))
    embedding = save_adapter(model, LoraConfig(r=3, target_modules=["embeddings"]), tmp_path / "a", seed=1)
    linear = save_adapter(model, LoraConfig(r=3, target_modules=["in_proj"]), tmp_path / "b", seed=1)
    merge_folder(tmp_path / "base", [(linear, 1.0)], tmp_path / "linear")
    if said is False:
        merge_folder(tmp_path / "base", [(embedding, 1.0)], tmp_path / "out")
        return
    with pytest.raises(RegistryError, match="it is unknown what is tied in the architecture NewForCausalLM") as caught:
        merge_folder(tmp_path / "base", [(embedding, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported" and "tie_word_embeddings" in (caught.value.hint or "")
    assert caught.value.facts == {"module": "backbone.embeddings", "tensor": "backbone.embeddings.weight"}


def test_parameters_that_are_tied_beside_the_output_layer_are_stored_too(tmp_path: Path) -> None:
    """BERT ties the bias of its output layer: once nothing is tied, the files hold it under both names."""
    torch.manual_seed(0)
    model = bert()
    model.save_pretrained(tmp_path / "base")
    adapter = save_adapter(model, LoraConfig(r=3, target_modules=["word_embeddings"]), tmp_path / "a", seed=1)
    merge_folder(tmp_path / "base", [(adapter, 1.0)], tmp_path / "out")
    added = set(read_model(tmp_path / "out")) - set(read_model(tmp_path / "base"))
    assert added == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


def test_only_the_output_layer_in_the_files(tmp_path: Path) -> None:
    """The files of a tied model may hold either of the two."""
    torch.manual_seed(0)
    model = mamba()
    model.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, path, {"format": "pt"})
    adapter = save_adapter(model, LoraConfig(r=3, target_modules=["embeddings"]), tmp_path / "a", seed=1)

    def load(folder: Path) -> Any:
        return type(model).from_pretrained(folder, dtype=torch.float32).eval()

    want = adapted_logits(load(tmp_path / "base"), adapter, TOKENS)
    merge_folder(tmp_path / "base", [(adapter, 1.0)], tmp_path / "out")
    with torch.no_grad():
        got = load(tmp_path / "out")(TOKENS).logits
    assert (got - want).abs().max() < 1e-5
    assert {"lm_head.weight", "backbone.embeddings.weight"} <= set(read_model(tmp_path / "out"))


def test_the_fingerprint_of_a_base_is_as_it_was_pinned(tmp_path: Path) -> None:
    """What is tied is derived from it and no part of it: a pinned base keeps its digest."""
    torch.manual_seed(0)
    mamba().save_pretrained(tmp_path / "base")
    base, _ = read_base(tmp_path / "base")
    assert (base.tied, base.embedding_rows, base.schema) == (False, None, 1)
