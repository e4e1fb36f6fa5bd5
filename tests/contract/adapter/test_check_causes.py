"""Findings of one cause are one finding with a count, and the cause is told: another model, names that a trainer spoiled."""

from __future__ import annotations

import re

import pytest

from tests.support.adapters import check_files, codes, fingerprint_of, make_base, make_draft, values


def errors(result):
    return [finding for finding in result.findings if finding.severity == "error"]


def test_an_adapter_of_another_model_is_one_sentence(base, tmp_path):
    wide = fingerprint_of(make_base(tmp_path / "wide", layers=5, hidden=64, intermediate=96, vocab=120))
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for targets in (("q_proj", "v_proj"), every, ("down_proj",)):
        (found,) = errors(check_files(make_draft(wide, targets=targets).files(), base))
        assert found.message == "The adapter was trained on another model: its hidden size is 64, the base has 32."
        assert (found.where, found.found, found.expected) == ("hidden_size", "64", "32")


def test_an_adapter_of_another_model_that_names_it_is_one_sentence(base, tmp_path):
    draft = make_draft(fingerprint_of(make_base(tmp_path / "wide", hidden=64)))
    draft.config["base_model_name_or_path"] = "acme/wide"
    (found,) = errors(check_files(draft.files(), base))
    assert found.message == (
        "The adapter was trained on another model, 'acme/wide': its hidden size is 64, the base has 32."
    )


def test_a_base_that_is_not_named_so_gets_the_command_that_names_it(base):
    draft = make_draft(base)
    draft.config["base_model_name_or_path"] = "acme/other; rm"
    (found,) = errors(check_files(draft.files(), base, base_name="default/tiny"))
    assert "is not an alias of default/tiny" in found.message
    assert "`lora-reg base alias default/tiny 'acme/other; rm'`" in found.hint


def test_another_fault_beside_is_told_too(base, tmp_path):
    wide = fingerprint_of(make_base(tmp_path / "wide", hidden=64))
    draft = make_draft(wide)
    draft.tensors["base_model.model.model.layers.0.input_layernorm.weight"] = values((64,))
    assert codes(check_files(draft.files(), base)) == {"shape-mismatch", "overwrites-base"}


def test_a_fault_of_many_tensors_is_one_finding(base):
    draft = make_draft(base)
    for name in list(draft.tensors):
        if "v_proj" in name:
            del draft.tensors[name]
    (found,) = errors(check_files(draft.files(), base))
    assert (found.code, found.count) == ("missing-module", 3)
    assert found.also == ["model.layers.1.self_attn.v_proj", "model.layers.2.self_attn.v_proj"]
    assert found.message.endswith(
        "The same goes for 2 more: model.layers.1.self_attn.v_proj, model.layers.2.self_attn.v_proj."
    )


def test_different_causes_stay_apart(base):
    draft = make_draft(base)
    draft.tensors["base_model.model.model.layers.1.input_layernorm.weight"] = values((32,))
    draft.tensors["one"] = draft.tensors["two"] = values((1,))
    found = {finding.code: finding.count for finding in errors(check_files(draft.files(), base))}
    assert found == {"overwrites-base": 1, "unknown-tensor": 2}


MODEL = "base_model.model."
SPOILED = {
    "torch.compile": ("_orig_mod.", lambda name: name.replace(MODEL, f"{MODEL}_orig_mod.")),
    "torch.compile outside": ("_orig_mod.", lambda name: f"_orig_mod.{name}"),
    "FSDP": ("_fsdp_wrapped_module.", lambda name: name.replace(".layers.", "._fsdp_wrapped_module.layers.")),
    "checkpointing": (
        "_checkpoint_wrapped_module.",
        lambda name: re.sub(r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module.", name),
    ),
    "DDP outside": ("module.", lambda name: f"module.{name}"),
    "DDP inside": ("module.", lambda name: name.replace(MODEL, f"{MODEL}module.")),
    "adapter": ("default.", lambda name: name.replace(".weight", ".default.weight")),
    "adapter of another name": ("sql.", lambda name: name.replace(".weight", ".sql.weight")),
    "both": (
        "_orig_mod.",
        lambda name: name.replace(MODEL, f"{MODEL}_orig_mod.").replace(".weight", ".default.weight"),
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_names_that_a_trainer_spoiled_are_one_finding_with_the_renaming(base, case):
    part, spoil = SPOILED[case]
    draft = make_draft(base)
    good = dict(draft.tensors)
    draft.tensors = {spoil(name): tensor for name, tensor in good.items()}
    (found,) = errors(check_files(draft.files(), base))
    assert found.code == "unknown-tensor"
    assert repr(part) in found.message
    assert found.expected in good
    # The command in the hint does what it says.
    renaming = re.search(r"save_file\(\{(k.*?): v for k, v", found.hint)[1]
    assert {eval(renaming, {"k": name}) for name in draft.tensors} == set(good)


def test_other_faults_of_a_spoiled_file_are_told_by_their_proper_names(base):
    draft = make_draft(base)
    del draft.tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    draft.tensors = {name.replace(MODEL, f"{MODEL}_orig_mod."): tensor for name, tensor in draft.tensors.items()}
    found = {finding.code: finding for finding in errors(check_files(draft.files(), base))}
    assert set(found) == {"unknown-tensor", "missing-tensor"}
    assert found["missing-tensor"].where == "model.layers.1.self_attn.q_proj"
