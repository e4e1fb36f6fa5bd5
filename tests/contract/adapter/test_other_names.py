"""Adapters with names of another version of transformers than the base's files, and of a part of the base alone."""

from __future__ import annotations

import json
import re

import pytest

from lora_contract.adapter.config import parse_config
from lora_contract.adapter.moving import moved
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.errors import RegistryError
from lora_contract.modules import modules_of
from lora_contract.tensors import header_length, parse_header
from tests.support.adapters import Draft, check_files, fingerprint_of, make_base, make_draft, read_draft, values
from tests.support.wild import require_wild

MODEL = "base_model.model."
LAYER = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def base_of(architecture: str, model_type: str, *names: str, config: dict | None = None, **shapes) -> BaseFingerprint:
    known = {f"{name}.weight": (32, 32) for name in names} | shapes
    tensors = tuple(BaseTensor(name, "F32", shape, "f", 0, 0) for name, shape in sorted(known.items()))
    document = {"tie_word_embeddings": False, "model_type": model_type, **(config or {})}
    return BaseFingerprint(architecture, model_type, document, tensors, {}, None, False, None, None)


def layers(prefix: str) -> list[str]:
    return [f"{prefix}layers.{number}.{name}" for number in range(2) for name in LAYER]


def renamed(draft: Draft, pattern: str, new: str, targets: list[str] | None = None) -> Draft:
    """The draft with other names of tensors and, if given, other targets."""
    tensors = {re.sub(pattern, new, name, count=1): value for name, value in draft.tensors.items()}
    return Draft({**draft.config, **({"target_modules": targets} if targets else {})}, tensors)


def errors(result):
    return [finding for finding in result.findings if finding.severity == "error"]


def warnings(result):
    return [finding for finding in result.findings if finding.severity == "warning"]


def qwen(prefix: str) -> BaseFingerprint:
    names = [*layers(prefix), "visual.blocks.0.attn.proj", "lm_head", f"{prefix}embed_tokens"]
    return base_of("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", *names)


def llava(text: str = "language_model.model.", vision: str = "vision_tower.vision_model.encoder.") -> BaseFingerprint:
    head = "language_model.lm_head" if text.startswith("language") else "lm_head"
    tower = [f"{vision}layers.0.self_attn.q_proj"]
    config = {"vision_config": {"model_type": "clip_vision_model"}, "text_config": {"model_type": "llama"}}
    names = [*layers(text), f"{text}embed_tokens", head, *tower]
    return base_of("LlavaForConditionalGeneration", "llava", *names, config=config)


@pytest.mark.parametrize(
    ("base", "adapter", "warned"),
    [
        (qwen("model."), "model.language_model.", False),
        (qwen("model."), "model.", True),
        (qwen("model.language_model."), "model.language_model.", False),
        (qwen("model.language_model."), "model.", True),
        (llava(), "model.language_model.", False),
        (llava(), "language_model.model.", False),
        (llava("model.language_model."), "language_model.model.", False),
    ],
)
def test_names_of_any_version_are_found_in_names_of_any_other(base, adapter, warned) -> None:
    own = next(tensor.name for tensor in base.tensors if "layers.0.self_attn.v_proj" in tensor.name).partition(
        "layers"
    )[0]
    draft = make_draft(base, targets=("v_proj", "down_proj"))
    found = check_files(renamed(draft, re.escape(f"{MODEL}{own}"), f"{MODEL}{adapter}").files(), base)
    assert errors(found) == []
    assert found.facts.modules == 4
    assert [finding.code for finding in warnings(found)] == ["older-names"] * warned
    if warned:
        (finding,) = warnings(found)
        assert finding.message.startswith("4 modules have their names of an older transformers; PEFT with")
        assert (finding.where, finding.expected) == (
            "model.layers.0.mlp.down_proj",
            "model.language_model.layers.0.mlp.down_proj",
        )


def test_a_missing_module_is_told_by_the_names_that_the_adapter_has() -> None:
    base = base_of(
        "ViTForImageClassification",
        "vit",
        *(f"vit.encoder.layer.{i}.attention.attention.{name}" for i in (0, 1) for name in ("query", "value")),
    )
    draft = make_draft(base, targets=("query", "value"), task_type=None)
    for name in list(draft.tensors):
        if "layer.1" in name and "value" in name:
            del draft.tensors[name]
    new = Draft(draft.config, dict(draft.tensors))
    for old, name in (("encoder.layer.", "layers."), ("attention.query", "q_proj"), ("attention.value", "v_proj")):
        new = renamed(new, re.escape(old), name, ["q_proj", "v_proj"])
    assert f"{MODEL}vit.layers.0.attention.q_proj.lora_A.weight" in new.tensors
    for each in (draft, new):
        (finding,) = errors(check_files(each.files(), base))
        assert (finding.code, finding.where) == (
            "missing-module",
            "vit.encoder.layer.1.attention.attention.value",
        )


def test_what_transformers_splits_is_refused_with_the_reason() -> None:
    base = base_of("Dinov2ForImageClassification", "dinov2", "dinov2.encoder.layer.0.mlp.weights_in")
    draft = renamed(make_draft(base, targets=("weights_in",)), "weights_in", "gate_proj", ["gate_proj"])
    (finding, *_) = errors(check_files(draft.files(), base))
    assert finding.code == "module-not-in-base"
    assert "transformers makes it of the base's dinov2.encoder.layer.0.mlp.weights_in.weight" in finding.message


def test_what_is_split_in_the_base_is_refused_for_an_older_adapter() -> None:
    base = base_of("Dinov2ForImageClassification", "dinov2", "dinov2.encoder.layer.0.mlp.gate_proj")
    draft = renamed(make_draft(base, targets=("gate_proj",)), "gate_proj", "weights_in", ["weights_in"])
    (finding, *_) = errors(check_files(draft.files(), base))
    assert "transformers now has" in finding.message
    assert "mlp.gate_proj.weight and" in finding.message


def test_experts_of_another_parent_are_the_same_experts() -> None:
    names = [f"model.layers.0.block_sparse_moe.experts.{i}.{part}" for i in range(2) for part in ("w1", "w2", "w3")]
    base = base_of("PhimoeForCausalLM", "phimoe", *names, "model.layers.0.block_sparse_moe.gate")
    modules = modules_of(base)
    found = modules.resolve("model.layers.0.mlp.experts")
    assert found is not None and (found.kind, found.experts) == ("experts", 2)
    router = modules.resolve("model.layers.0.mlp.router")
    assert router is not None and router.path == "model.layers.0.block_sparse_moe.gate"


def test_the_type_of_a_submodel_decides_its_rules() -> None:
    tower = {"vision_config": {"model_type": "dinov2"}, "text_config": {"model_type": "llama"}}
    base = base_of(
        "LlavaForConditionalGeneration",
        "llava",
        "vision_tower.encoder.layer.0.attention.attention.query",
        config=tower,
    )
    found = modules_of(base).resolve("model.vision_tower.encoder.layer.0.attention.q_proj")
    assert found is not None and found.path == base.tensors[0].name.removesuffix(".weight")


@pytest.mark.parametrize("base", [llava(), llava("model.language_model.", "model.vision_tower.encoder.")])
def test_an_adapter_of_the_language_model_alone_is_told_where_the_base_has_it(base) -> None:
    own = next(tensor.name for tensor in base.tensors if "layers.0.self_attn.v_proj" in tensor.name).partition(
        "layers"
    )[0]
    draft = make_draft(base, targets=("v_proj", "down_proj"), base_model_name_or_path="acme/llama")
    draft = renamed(draft, re.escape(f"{MODEL}{own}"), f"{MODEL}model.")
    (finding,) = errors(check_files(draft.files(), base))
    assert finding.code == "part-of-base"
    assert finding.message == (
        "The adapter was trained on a part of this base alone: the base has its 4 modules, such as "
        "model.layers.0.mlp.down_proj, under model.language_model."
    )
    assert finding.hint.endswith("`lora-reg push DIR --prefix model.language_model`.")
    for prefix in ("model.language_model", own.removesuffix(".")):
        new = _moved(draft, base, prefix)
        found = check_files(new.files(), base, accept_base=True)
        assert errors(found) == warnings(found) == []
        assert all(name.startswith(f"{MODEL}model.language_model.layers.") for name in new.tensors)


def test_patterns_and_targets_are_moved_with_the_names() -> None:
    base = llava()
    draft = make_draft(
        base,
        targets=("v_proj", "down_proj"),
        rank=4,
        rank_pattern={"down_proj": 4, r"model\.layers\.1\.self_attn\.v_proj": 2},
        alpha_pattern={"model.layers.0.self_attn.v_proj": 3},
        layers_to_transform=[0, 1],
    )
    draft = renamed(draft, re.escape(f"{MODEL}language_model.model."), f"{MODEL}model.")
    new = _moved(draft, base, "model.language_model")
    path = "model.language_model.layers."
    assert new.config["rank_pattern"][f"{path}1.self_attn.v_proj"] == 2
    assert new.config["alpha_pattern"][f"{path}0.self_attn.v_proj"] == 3
    assert new.config["layers_to_transform"] is None
    ends = ("mlp.down_proj", "self_attn.v_proj")
    assert new.config["target_modules"] == [f"{path}{number}.{end}" for number in range(2) for end in ends]


def test_a_prefix_under_which_the_base_has_nothing_is_refused() -> None:
    draft = renamed(make_draft(llava(), targets=("v_proj",)), re.escape("language_model.model."), "model.")
    with pytest.raises(RegistryError, match=r"has none of the adapter's 2 modules under 'model\.audio_tower'"):
        _moved(draft, llava(), "model.audio_tower")


def test_the_vision_adapter_of_the_world_fits_its_base() -> None:
    folder = require_wild("transformers5-vision-names")
    base, draft = fingerprint_of(folder / "base"), read_draft(folder / "adapter")
    found = check_files(draft.files(), base, accept_base=True)
    assert errors(found) == warnings(found) == []
    older = draft
    for new, old in (("layers.", "encoder.layer."), ("q_proj", "attention.query"), ("v_proj", "attention.value")):
        older = renamed(older, re.escape(new), old, ["query", "value"])
    found = check_files(older.files(), base, accept_base=True)
    assert errors(found) == []
    assert [finding.code for finding in warnings(found)] == ["older-names"]


def _moved(draft: Draft, base: BaseFingerprint, prefix: str) -> Draft:
    data = draft.files()["adapter_model.safetensors"]
    header = parse_header(data[: 8 + header_length(data[:8], len(data))], len(data))
    config, new = moved(parse_config(json.dumps(draft.config).encode()), header, modules_of(base), prefix)
    tensors = {each.name: (each.dtype, each.shape, data[each.file_start : each.file_end]) for each in new.tensors}
    return Draft(config.raw, tensors)


def test_a_module_under_two_names_is_refused() -> None:
    base = qwen("model.")
    draft = make_draft(base, targets=("v_proj",))
    draft.tensors |= renamed(draft, re.escape(f"{MODEL}model."), f"{MODEL}model.language_model.").tensors
    (finding,) = errors(check_files(draft.files(), base))
    assert (finding.code, finding.count) == ("module-twice", 2)
    assert finding.message.startswith(
        "The file adapts one module of the base under two names, model.layers.0.self_attn.v_proj and "
        "model.language_model.layers.0.self_attn.v_proj."
    )


def test_a_saved_module_that_is_tied_must_be_in_the_file(tmp_path) -> None:
    base = fingerprint_of(make_base(tmp_path, tied=True))
    draft = make_draft(base, modules_to_save=["lm_head"])
    (finding,) = errors(check_files(draft.files(), base))
    assert (finding.code, finding.where) == ("missing-tensor", "lm_head")
    draft.tensors["base_model.model.lm_head.weight"] = values((96, 32))
    assert errors(check_files(draft.files(), base)) == []


@pytest.mark.parametrize(
    ("architecture", "model_type", "parent", "warned"),
    [
        ("MixtralForCausalLM", "mixtral", "block_sparse_moe", False),
        ("PhimoeForCausalLM", "phimoe", "block_sparse_moe", True),
        ("Qwen3MoeForCausalLM", "qwen3_moe", "mlp", False),
        ("JambaForCausalLM", "jamba", "feed_forward", True),
    ],
)
def test_pairs_on_single_experts_are_warned_of_where_peft_does_not_join_them(
    architecture, model_type, parent, warned
) -> None:
    parts = ("w1", "w2", "w3") if parent == "block_sparse_moe" else ("gate_proj", "up_proj", "down_proj")
    base = base_of(
        architecture, model_type, *(f"model.layers.0.{parent}.experts.{i}.{p}" for i in (0, 1) for p in parts)
    )
    found = check_files(make_draft(base, targets=parts).files(), base)
    assert errors(found) == []
    assert [finding.code for finding in warnings(found)] == ["older-names"] * warned


def test_pairs_on_single_experts_do_not_fit_a_base_whose_experts_are_one_tensor() -> None:
    names = {f"model.layers.0.mlp.experts.{name}": (2, 32, 32) for name in ("gate_up_proj", "down_proj")}
    base = base_of("MixtralForCausalLM", "mixtral", **names)
    older = base_of("MixtralForCausalLM", "mixtral", "model.layers.0.block_sparse_moe.experts.0.w1")
    (finding, *_) = errors(check_files(make_draft(older, targets=("w1",)).files(), base))
    assert finding.code == "module-not-in-base"
    assert "transformers now has model.layers.0.mlp.experts.gate_up_proj in its place" in finding.message
