"""Adapters with the head of a task, merged into a base without it: the model that PEFT's own merge gives."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from tests.kernels.types.lora.models import SIZES, save_adapter
from tests.support.adapters import base_reader, check_files, codes, fingerprint_of, read_folder
from tests.support.wild import require_wild

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = torch.tensor([[1, 3, 5, 7, 9, 2]])
# What transformers writes of itself, and what a base says that a model with a head does not repeat.
OWN = {"transformers_version", "dtype", "use_cache", "num_labels"}
GPT2 = {
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 2,
    "vocab_size": 64,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def merged_as_peft_does(
    kind: Any, base: Path, adapter: Path, out: Path, *, weights: float = 1e-5, **labels: Any
) -> dict[str, Any]:
    """Check the merge against PEFT's own, in logits, parameters and config. Return the config."""
    checked = check_files(read_folder(adapter), fingerprint_of(base), accept_base=True, read_base=base_reader(base))
    assert checked.accepted, checked.findings
    merge_folder(base, [(adapter, 1.0)], out, min_kept=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = kind.from_pretrained(base, dtype=torch.float32, **labels)
        peft = PeftModel.from_pretrained(loaded, str(adapter)).merge_and_unload().eval()
    ours, info = kind.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        wanted, found = peft(input_ids=TOKENS)[0], ours.eval()(input_ids=TOKENS)[0]
    assert (wanted - found).abs().max() <= 1e-5 * wanted.abs().max() + 1e-6
    state = ours.state_dict()
    for name, value in peft.state_dict().items():
        assert (state[name] - value).abs().max() <= weights, name
    peft.save_pretrained(out.with_name("peft"))
    config, theirs = (json.loads((folder / "config.json").read_text()) for folder in (out, out.with_name("peft")))
    assert config["architectures"] == theirs["architectures"] == [kind.__name__]
    assert {key: config.get(key) for key in theirs if key not in OWN} == {
        k: v for k, v in theirs.items() if k not in OWN
    }
    return config


def test_a_reward_model_of_the_world_is_merged(tmp_path: Path) -> None:
    folder = require_wild("seq-cls-merge")
    config = merged_as_peft_does(
        transformers.LlamaForSequenceClassification,
        folder / "base",
        folder / "reward",
        tmp_path / "out",
        num_labels=1,
    )
    assert config["id2label"] == {"0": "LABEL_0"}
    assert set(load_file(tmp_path / "out" / "model.safetensors")).isdisjoint({"lm_head.weight"})
    facts = check_files(read_folder(folder / "reward"), fingerprint_of(folder / "base"), accept_base=True).facts
    assert facts is not None and (facts.architecture, facts.labels) == ("LlamaForSequenceClassification", 1)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
def test_a_head_that_an_older_config_does_not_name_is_merged(tmp_path: Path, kind: str) -> None:
    """Older versions of PEFT wrote modules_to_save null. The base of GPT-2 on the Hub has no prefix."""
    torch.manual_seed(0)
    getattr(transformers, kind)(transformers.GPT2Config(**GPT2)).save_pretrained(tmp_path / "base")
    if kind == "GPT2Model":
        config = json.loads((tmp_path / "base" / "config.json").read_text())
        (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    edit = {"modules_to_save": None, "task_type": "SEQ_CLS"}
    model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    options = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "SEQ_CLS"}
    save_adapter(model, LoraConfig(**options), tmp_path / "adapter", seed=1, edit=edit)
    config = merged_as_peft_does(
        transformers.GPT2ForSequenceClassification,
        tmp_path / "base",
        tmp_path / "adapter",
        tmp_path / "out",
        num_labels=3,
    )
    assert list(config["label2id"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_the_older_config_of_the_world_needs_the_head_in_the_file(tmp_path: Path) -> None:
    data = (require_wild("seq-cls-merge") / "gpt2-seqcls" / "adapter_config.json").read_bytes()
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).save_pretrained(tmp_path / "base")
    model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "base")
    options = {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "SEQ_CLS"}
    adapter = save_adapter(model, LoraConfig(**options), tmp_path / "adapter", seed=1)
    (adapter / "adapter_config.json").write_bytes(data)
    merged_as_peft_does(transformers.GPT2ForSequenceClassification, tmp_path / "base", adapter, tmp_path / "out")
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors["base_model.model.score.weight"]
    save_file(tensors, adapter / "adapter_model.safetensors")
    found = check_files(read_folder(adapter), fingerprint_of(tmp_path / "base"), accept_base=True)
    assert codes(found) == {"missing-tensor"}
    with pytest.raises(RegistryError, match=r"GPT2ForSequenceClassification has score\.weight") as caught:
        merge_folder(tmp_path / "base", [(adapter, 1.0)], tmp_path / "none")
    assert caught.value.code == "unsupported"


def llama(folder: Path, kind: str = "LlamaForCausalLM", **options: Any) -> Path:
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    cls(cls.config_class(**SIZES, **options)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("task", "kind", "labels"),
    [
        ("TOKEN_CLS", "LlamaForTokenClassification", {"num_labels": 5}),
        ("QUESTION_ANS", "MistralForQuestionAnswering", {}),
        (None, "LlamaForSequenceClassification", {"num_labels": 4}),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_every_task_is_merged_onto_tied_and_untied_bases(
    tmp_path: Path, task: str | None, kind: str, labels: dict[str, Any], tied: bool
) -> None:
    """Without a task, auto_mapping says which class it was."""
    causal = f"{kind.partition('For')[0]}ForCausalLM"
    base, cls = llama(tmp_path / "base", causal, tie_word_embeddings=tied), getattr(transformers, kind)
    model = cls.from_pretrained(base, **labels)
    saved = {} if task else {"modules_to_save": ["score"]}
    options = {"r": 2, "target_modules": ["q_proj", "down_proj", "embed_tokens"], "task_type": task, **saved}
    adapter = save_adapter(model, LoraConfig(**options), tmp_path / "adapter", seed=1)
    merged_as_peft_does(cls, base, adapter, tmp_path / "out", **labels)


def test_a_head_with_other_labels_replaces_that_of_the_base(tmp_path: Path) -> None:
    kind = transformers.LlamaForSequenceClassification
    base = llama(tmp_path / "base", kind.__name__, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    for count in (2, 3):
        model = kind.from_pretrained(base, num_labels=count, ignore_mismatched_sizes=True)
        options = {"r": 2, "target_modules": ["q_proj"], "task_type": "SEQ_CLS"}
        adapter = save_adapter(model, LoraConfig(**options), tmp_path / f"adapter{count}", seed=count)
        assert check_files(read_folder(adapter), fingerprint_of(base), accept_base=True).accepted
        merge_folder(base, [(adapter, 1.0)], tmp_path / f"out{count}")
        config = json.loads((tmp_path / f"out{count}" / "config.json").read_text())
        names = ["no", "yes"] if count == 2 else ["LABEL_0", "LABEL_1", "LABEL_2"]
        assert list(config["id2label"].values()) == names
        merged = kind.from_pretrained(tmp_path / f"out{count}")
        stored = load_file(adapter / "adapter_model.safetensors")
        assert torch.equal(merged.score.weight, stored["base_model.model.score.weight"])


def test_heads_of_two_tasks_are_not_merged_together(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    adapters = []
    for task, kind in (("SEQ_CLS", "LlamaForSequenceClassification"), ("TOKEN_CLS", "LlamaForTokenClassification")):
        options = {"r": 2, "target_modules": ["q_proj"], "task_type": task}
        model = getattr(transformers, kind).from_pretrained(base)
        adapters.append((save_adapter(model, LoraConfig(**options), tmp_path / task, seed=1), 1.0))
    with pytest.raises(RegistryError, match="one model cannot have both heads"):
        merge_folder(base, adapters, tmp_path / "out")
    output = save_adapter(
        transformers.LlamaForCausalLM.from_pretrained(base),
        LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"),
        tmp_path / "output",
        seed=2,
    )
    with pytest.raises(RegistryError, match="lm_head, which the base does not have"):
        merge_folder(base, [adapters[0], (output, 1.0)], tmp_path / "out")
    body = save_adapter(
        transformers.LlamaForCausalLM.from_pretrained(base),
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        tmp_path / "body",
        seed=3,
    )
    merge_folder(base, [(body, 0.5), adapters[0]], tmp_path / "out")
    assert "score.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_a_class_that_loads_no_base_without_its_head_is_refused(tmp_path: Path) -> None:
    """Llama's class for question answering calls the model `transformer`: transformers loads random weights into it."""
    base = llama(tmp_path / "base")
    model = transformers.LlamaForQuestionAnswering.from_pretrained(base)
    options = {"r": 2, "target_modules": ["q_proj"], "task_type": "QUESTION_ANS"}
    adapter = save_adapter(model, LoraConfig(**options), tmp_path / "adapter", seed=1)
    with pytest.raises(
        RegistryError, match=r"has transformer\.embed_tokens, .* neither the adapter nor the base"
    ) as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported"


def test_a_quantized_result_keeps_the_head_in_full_precision(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", "MistralForCausalLM")
    model = transformers.MistralForQuestionAnswering.from_pretrained(base)
    options = {"r": 2, "target_modules": ["q_proj"], "task_type": "QUESTION_ANS"}
    adapter = save_adapter(model, LoraConfig(**options), tmp_path / "adapter", seed=1)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", dtype="nf4", min_kept=None)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["qa_outputs.weight"].dtype == torch.float32 and "model.layers.0.mlp.up_proj.weight.absmax" in tensors
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "qa_outputs" in config["quantization_config"]["llm_int8_skip_modules"]
