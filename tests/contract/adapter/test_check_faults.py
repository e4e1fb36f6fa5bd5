"""A good adapter with one thing spoiled: the finding names it, and nothing raises."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile

import pytest

from tests.support import adapters
from tests.support.adapters import check_files, codes, make_draft, pack, values, weights

A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
STEM = "base_model.model.model.layers.1"


def test_the_good_one_is_accepted(base):
    result = check_files(make_draft(base).files(), base)
    assert result.findings == []
    assert result.facts is not None
    assert result.facts.ranks == {"4": 6}
    assert result.facts.targets == {"q_proj": 3, "v_proj": 3}
    assert result.facts.parameters == 3 * (4 * 32 + 32 * 4 + 4 * 32 + 16 * 4)


def without(*names):
    def spoil(draft):
        for name in names:
            del draft.tensors[name]

    return spoil


def put(name, tensor):
    def spoil(draft):
        draft.tensors[name] = tensor

    return spoil


def config(**changes):
    return lambda draft: draft.config.update(changes)


def drop_layer(draft):
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if ".layers.2." not in name}


def drop_module_everywhere(draft):
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if "v_proj" not in name}


def swap_halves(draft):
    for name in [name for name in draft.tensors if "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        draft.tensors[name], draft.tensors[other] = draft.tensors[other], draft.tensors[name]


def transpose(draft):
    dtype, shape, data = draft.tensors[B]
    draft.tensors[B] = (dtype, shape[::-1], data)


def rename(old, new):
    def spoil(draft):
        draft.tensors = {name.replace(old, new): tensor for name, tensor in draft.tensors.items()}

    return spoil


def all_b(tensor_of):
    def spoil(draft):
        for name, (dtype, shape, data) in draft.tensors.items():
            if "lora_B" in name:
                draft.tensors[name] = (dtype, shape, tensor_of(data))

    return spoil


def one_value(name, value):
    def spoil(draft):
        dtype, shape, data = draft.tensors[name]
        draft.tensors[name] = (dtype, shape, data[:-4] + struct.pack("<f", value))

    return spoil


def recast(dtype, data_of):
    def spoil(draft):
        for name, (_, shape, data) in draft.tensors.items():
            draft.tensors[name] = (dtype, shape, data_of(data))

    return spoil


def add_norm_lora(draft):
    draft.tensors[f"{STEM}.input_layernorm.lora_A.weight"] = values((4, 32))
    draft.tensors[f"{STEM}.input_layernorm.lora_B.weight"] = values((32, 4))


def saved_head_with_nan(draft):
    draft.config["modules_to_save"] = ["lm_head"]
    draft.tensors["base_model.model.lm_head.weight"] = ("F32", (96, 32), bytes(96 * 32 * 4 - 4) + b"\0\0\xc0\x7f")


def saved_module_lost(draft):
    draft.config["modules_to_save"] = ["lm_head"]


def saved_head_too_tall(draft):
    draft.config["modules_to_save"] = ["lm_head"]
    draft.tensors["base_model.model.lm_head.weight"] = values((98, 32))


def saved_head_wrong_width(draft):
    draft.config["modules_to_save"] = ["lm_head"]
    draft.tensors["base_model.model.lm_head.weight"] = values((96, 16))


def saves_more_than_it_says(draft):
    draft.config["modules_to_save"] = ["lm_head"]
    draft.tensors["base_model.model.lm_head.weight"] = values((96, 32))
    draft.tensors["base_model.model.model.norm.weight"] = values((32,))


def tokens_out_of_range(draft):
    draft.config["trainable_token_indices"] = {"embed_tokens": [1, 96]}
    draft.tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"] = values((2, 32))


def tokens_of_no_index(draft):
    draft.tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"] = values((2, 32))


TENSOR_FAULTS = {
    "lora_B missing": (without(B), "missing-tensor", "model.layers.1.self_attn.q_proj"),
    "lora_A missing": (without(A), "missing-tensor", "model.layers.1.self_attn.q_proj"),
    "homoglyph in the suffix": (
        rename("layers.1.self_attn.q_proj.lora_A", "layers.1.self_attn.q_proj.l\u043era_A"),
        "unknown-tensor",
        None,
    ),
    "homoglyph in the module": (
        rename("layers.1.self_attn.q_proj", "layers.1.self_attn.q_pr\u043ej"),
        "module-not-in-base",
        None,
    ),
    "a layer missing": (drop_layer, "missing-module", "model.layers.2.self_attn.q_proj"),
    "a target missing everywhere": (drop_module_everywhere, "missing-module", "model.layers.0.self_attn.v_proj"),
    "module not in the base": (rename("layers.2.", "layers.9."), "module-not-in-base", None),
    "no prefix": (rename("base_model.model.", ""), "unknown-tensor", None),
    "names of the model without head": (rename("base_model.model.", "base_model."), "module-not-in-base", None),
    "adapter name kept": (rename("lora_A.weight", "lora_A.default.weight"), "unknown-tensor", None),
    "A and B exchanged": (swap_halves, "shape-mismatch", None),
    "B transposed": (transpose, "shape-mismatch", B),
    "rows of another base": (put(B, values((40, 4))), "shape-mismatch", B),
    "columns of another base": (put(A, values((4, 40))), "shape-mismatch", A),
    "one module of another rank": (put(A, values((6, 32))), "rank-mismatch", A),
    "a vector": (put(A, values((128,))), "shape-mismatch", A),
    "empty halves": (put(A, values((0, 32))), "rank-mismatch", A),
    "NaN": (one_value(A, float("nan")), "nonfinite-value", A),
    "infinity": (one_value(B, float("-inf")), "nonfinite-value", B),
    "NaN in modules_to_save": (saved_head_with_nan, "nonfinite-value", "base_model.model.lm_head.weight"),
    "product overflows": (
        lambda d: (one_value(A, 1e30)(d), one_value(B, -1e20)(d)),
        "product-overflow",
        "model.layers.1.self_attn.q_proj",
    ),
    "all B zero": (all_b(lambda data: bytes(len(data))), "no-effect", None),
    "all B minus zero": (all_b(lambda data: b"\0\0\0\x80" * (len(data) // 4)), "no-effect", None),
    "int8": (recast("I8", lambda data: data[: len(data) // 4]), "dtype-refused", A),
    "float64": (recast("F64", lambda data: data * 2), "dtype-refused", A),
    "boolean": (recast("BOOL", lambda data: bytes(len(data) // 4)), "dtype-refused", A),
    "LoRA on a norm": (add_norm_lora, "kind-not-adapted", "model.layers.1.input_layernorm"),
    "a norm of the base": (put(f"{STEM}.input_layernorm.weight", values((32,))), "overwrites-base", None),
    "the output layer": (put("base_model.model.lm_head.weight", values((96, 32))), "overwrites-base", None),
    "the embedding": (put("base_model.model.model.embed_tokens.weight", values((96, 32))), "overwrites-base", None),
    "an untargeted projection": (put(f"{STEM}.self_attn.k_proj.weight", values((16, 32))), "overwrites-base", None),
    "a targeted projection": (put(f"{STEM}.self_attn.q_proj.weight", values((32, 32))), "overwrites-base", None),
    "a base_layer": (put(f"{STEM}.self_attn.q_proj.base_layer.weight", values((32, 32))), "overwrites-base", None),
    "the final norm": (put("base_model.model.model.norm.weight", values((32,))), "overwrites-base", None),
    "a bias that the base lacks": (
        put(f"{STEM}.self_attn.q_proj.base_layer.bias", values((32,))),
        "unknown-tensor",
        None,
    ),
    "something else": (put("evil", values((1,))), "unknown-tensor", "evil"),
    "a lora magnitude without DoRA": (
        put(f"{STEM}.self_attn.q_proj.lora_magnitude_vector", values((32,))),
        "unknown-tensor",
        None,
    ),
    "untargeted modules": (config(target_modules=["q_proj"]), "not-targeted", "model.layers.0.self_attn.v_proj"),
    "more targets than tensors": (
        config(target_modules=["q_proj", "v_proj", "o_proj"]),
        "missing-module",
        "model.layers.0.self_attn.o_proj",
    ),
    "targets by a pattern that misses": (config(target_modules=r".*\.k_proj"), "not-targeted", None),
    "saved rows of a larger vocabulary": (saved_head_too_tall, "vocabulary-rows", "base_model.model.lm_head.weight"),
    "saved tensor of another width": (saved_head_wrong_width, "shape-mismatch", "base_model.model.lm_head.weight"),
    "saved module not in the file": (saved_module_lost, "missing-tensor", "lm_head.weight"),
    "saves a module without a name": (config(modules_to_save=[""]), "bad-config", None),
    "saves more than modules_to_save": (
        saves_more_than_it_says,
        "overwrites-base",
        "base_model.model.model.norm.weight",
    ),
    "token index out of range": (tokens_out_of_range, "vocabulary-rows", None),
    "token rows without indices": (tokens_of_no_index, "not-targeted", None),
    "rank of the config": (config(r=16), "rank-mismatch", None),
    "rank pattern": (config(rank_pattern={"q_proj": 8}), "rank-mismatch", None),
    "alpha 0": (config(lora_alpha=0), "no-effect", "lora_alpha"),
    "alpha 1e308": (config(lora_alpha=1e308), "bad-config", None),
    "alpha 3e38": (config(lora_alpha=3e38), "product-overflow", None),
    "alpha as text": (config(lora_alpha="16"), "bad-config", None),
    "alpha true": (config(lora_alpha=True), "bad-config", None),
    "r a billion": (config(r=10**9), "bad-config", None),
    "r 0": (config(r=0), "bad-config", None),
    "r a float": (config(r=8.0), "bad-config", None),
    "r in a pattern a billion": (config(rank_pattern={"q_proj": 10**9}), "bad-config", None),
    "DoRA without magnitudes": (config(use_dora=True), "missing-tensor", None),
    "lora_bias without biases": (config(lora_bias=True), "missing-tensor", None),
    "PiSSA": (config(init_lora_weights="pissa"), "init-changes-base", "init_lora_weights"),
    "PiSSA fast": (config(init_lora_weights="pissa_niter_16"), "init-changes-base", "init_lora_weights"),
    "OLoRA": (config(init_lora_weights="olora"), "init-changes-base", "init_lora_weights"),
    "CorDA": (config(init_lora_weights="corda"), "init-changes-base", "init_lora_weights"),
    "LoRA-GA": (config(init_lora_weights="lora_ga"), "init-changes-base", "init_lora_weights"),
    "LoftQ": (
        config(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
        "init-changes-base",
        "init_lora_weights",
    ),
    "KaSA": (config(kasa_config={"beta": 1e-4}), "init-changes-base", "kasa_config"),
    "layer replication": (config(layer_replication=[[0, 2], [1, 3]]), "layer-replication", "layer_replication"),
    "another base": (config(base_model_name_or_path="meta-llama/Llama-2-7b-hf"), "base-mismatch", None),
    "no type": (config(peft_type=None), "bad-config", None),
    "unknown type": (config(peft_type="MEGALORA"), "bad-config", None),
    "type of other tensors": (config(peft_type="IA3"), "unknown-tensor", None),
    "targets no list": (config(target_modules={"q_proj": 1}), "bad-config", None),
    "a task that PEFT does not know": (config(task_type="TEXT"), "bad-config", None),
    "a part that is no object": (config(eva_config="q_proj"), "bad-config", None),
    "layers_pattern alone": (config(layers_pattern="layers"), "bad-config", None),
    "layers of a pattern": (config(target_modules=".*q_proj", layers_to_transform=[0]), "bad-config", None),
    "DoRA with Megatron": (config(use_dora=True, megatron_config={"a": 1}), "bad-config", None),
    "auto_map": (config(auto_map={"AutoModel": "evil.Model"}), "bad-config", None),
    "auto_map deep down": (config(eva_config={"x": [{"auto_map": {"a": "b"}}]}), "bad-config", None),
    "code in auto_mapping": (config(auto_mapping={"auto_map": {"AutoModel": "evil.Model"}}), "bad-config", None),
    "bias null": (config(bias=None), "bad-config", None),
    "rank_pattern null": (config(rank_pattern=None), "bad-config", None),
    "alpha_pattern null": (config(alpha_pattern=None), "bad-config", None),
    "AUTO_MAP": (config(AUTO_MAP={"AutoModel": "evil.Model"}), "bad-config", None),
    "custom_generate": (config(custom_generate="evil/generate"), "bad-config", None),
    "attention from a repository": (config(x={"attn_implementation": "evil/kernel"}), "bad-config", None),
    "megatron_core": (config(megatron_core="evil.module"), "bad-config", None),
    "remote code for a tokenizer": (config(tokenizer_kwargs={"trust_remote_code": True}), "bad-config", None),
    "remote code by text": (config(tokenizer_kwargs={"trust_remote_code": "yes"}), "bad-config", None),
    "attention implementation": (config(_attn_implementation_internal="evil/kernel"), "bad-config", None),
    "ReDoS in rank_pattern": (config(rank_pattern={"(a+)+$": 4}), "pattern-refused", "rank_pattern"),
    "ReDoS in alpha_pattern": (config(alpha_pattern={"(.*a){25}": 4}), "pattern-refused", "alpha_pattern"),
    "ReDoS in target_modules": (config(target_modules=r"([\w.]+)+#"), "pattern-refused", "target_modules"),
    "ReDoS in exclude_modules": (config(exclude_modules=r"(.*.*)*x"), "pattern-refused", "exclude_modules"),
    "thousands of patterns": (
        config(rank_pattern={f"(q|v)_pro[j]{n}.*": 4 for n in range(3000)}),
        "pattern-refused",
        None,
    ),
    "back reference": (config(target_modules=r"(q)\1"), "pattern-refused", None),
    "broken pattern": (config(target_modules=r"(q_proj"), "pattern-refused", None),
}


@pytest.mark.parametrize("name", TENSOR_FAULTS)
def test_fault(name, base, base_folder):
    spoil, code, where = TENSOR_FAULTS[name]
    draft = make_draft(base)
    spoil(draft)
    started = time.process_time()
    result = check_files(draft.files(), base, read_base=adapters.base_reader(base_folder))
    assert time.process_time() - started < 20  # seconds of a busy machine; without bounds it would be hours
    found = [finding for finding in result.findings if finding.code == code and finding.severity == "error"]
    assert found, result.findings
    if where is not None:
        assert where in {place for finding in found for place in (finding.where, *finding.also)}
    for finding in result.findings:
        assert finding.message.endswith(".")
        assert "\n" not in finding.message


def pickle_bytes(protocol: int) -> bytes:
    return pickle.dumps({"a": [1, 2, 3]}, protocol=protocol)


def zip_bytes() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return out.getvalue()


def text_config(draft) -> str:
    return json.dumps(draft.config)


W, C = "adapter_model.safetensors", "adapter_config.json"
FILE_FAULTS = {
    "no files": (lambda f, d: f.clear(), "file-missing"),
    "no config": (lambda f, d: f.pop(C), "file-missing"),
    "no weights": (lambda f, d: f.pop(W), "file-missing"),
    "pickle beside": (lambda f, d: f.update({"adapter_model.bin": pickle_bytes(2)}), "pickle"),
    "training_args.bin": (lambda f, d: f.update({"training_args.bin": zip_bytes()}), "pickle"),
    "code": (lambda f, d: f.update({"modeling.py": b"import os\n"}), "code"),
    "archive": (lambda f, d: f.update({"adapter.tar": b""}), "archive"),
    "pickle as weights": (lambda f, d: f.update({W: pickle_bytes(4)}), "content-refused"),
    "zip as weights": (lambda f, d: f.update({W: zip_bytes()}), "content-refused"),
    "gzip as text": (lambda f, d: f.update({"README.md": b"\x1f\x8b\x08\0\0"}), "content-refused"),
    "ELF as tokenizer": (lambda f, d: f.update({"tokenizer.model": b"\x7fELF\x02"}), "content-refused"),
    "script as text": (lambda f, d: f.update({"LICENSE": b"#!/bin/sh\nrm -rf /\n"}), "content-refused"),
    "tar as text": (lambda f, d: f.update({"notes.txt": bytes(257) + b"ustar\0" + bytes(200)}), "content-refused"),
    "old pickle as text": (lambda f, d: f.update({"notes.txt": b"cos\nsystem\n(S'id'\ntR."}), "content-refused"),
    "unknown file": (lambda f, d: f.update({"payload.dat": b"x"}), "file-not-allowed"),
    "sub-folder": (lambda f, d: f.update({"checkpoint-5/adapter_config.json": b"{}"}), "file-not-allowed"),
    "second weights": (lambda f, d: f.update({"model.safetensors": f[W]}), "file-not-allowed"),
    "traversal": (lambda f, d: f.update({"../README.md": b"x"}), "bad-path"),
    "absolute": (lambda f, d: f.update({"/etc/README.md": b"x"}), "bad-path"),
    "hidden": (lambda f, d: f.update({".git/config": b"x"}), "bad-path"),
    "two of a name": (lambda f, d: f.update({"readme.md": b"x", "README.md": b"y"}), "duplicate-path"),
    "auto_map deep in the tokenizer": (
        lambda f, d: f.update({"tokenizer_config.json": b'{"x": [{"Auto_Map": {"a": "b"}}]}'}),
        "auto-map",
    ),
    "custom_generate beside": (
        lambda f, d: f.update({"generation_config.json": b'{"custom_generate": "evil/generate"}'}),
        "auto-map",
    ),
    "auto_map in the tokenizer": (
        lambda f, d: f.update({"tokenizer_config.json": b'{"auto_map": {"a": "b"}}'}),
        "auto-map",
    ),
    "broken tokenizer": (lambda f, d: f.update({"tokenizer.json": b'{"a": 1, "a": 2}'}), "bad-json"),
    "config no object": (lambda f, d: f.update({C: b"[]"}), "bad-config"),
    "config empty": (lambda f, d: f.update({C: b""}), "bad-config"),
    "config with mark": (lambda f, d: f.update({C: b"\xef\xbb\xbf" + f[C]}), "bad-config"),
    "config in UTF-16": (lambda f, d: f.update({C: text_config(d).encode("utf-16")}), "bad-config"),
    "config twice": (
        lambda f, d: f.update({C: text_config(d).replace('"r": 4', '"r": 4, "r": 8').encode()}),
        "bad-config",
    ),
    "alpha NaN": (
        lambda f, d: f.update({C: text_config(d).replace('"lora_alpha": 8', '"lora_alpha": NaN').encode()}),
        "bad-config",
    ),
    "alpha 1e999": (
        lambda f, d: f.update({C: text_config(d).replace('"lora_alpha": 8', '"lora_alpha": 1e999').encode()}),
        "bad-config",
    ),
    "huge digits": (
        lambda f, d: f.update({C: text_config(d).replace('"r": 4', '"r": ' + "9" * 5000).encode()}),
        "bad-config",
    ),
    "deep config": (lambda f, d: f.update({C: b'{"a":' * 5000 + b"1" + b"}" * 5000}), "bad-config"),
    "0 tensors": (lambda f, d: f.update({W: weights({})}), "no-tensors"),
    "40 bytes": (lambda f, d: f.update({W: bytes(40)}), "bad-safetensors"),
    "empty weights": (lambda f, d: f.update({W: b""}), "bad-safetensors"),
    "3 bytes": (lambda f, d: f.update({W: b"abc"}), "bad-safetensors"),
    "u64::MAX": (lambda f, d: f.update({W: b"\xff" * 8 + f[W][8:]}), "bad-safetensors"),
    "truncated": (lambda f, d: f.update({W: f[W][:-1]}), "bad-safetensors"),
    "trailing bytes": (lambda f, d: f.update({W: f[W] + b"\0"}), "bad-safetensors"),
}


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_file_fault(name, base):
    spoil, code = FILE_FAULTS[name]
    draft = make_draft(base)
    files = draft.files()
    spoil(files, draft)
    assert code in codes(check_files(files, base))


def test_all_faults_are_told_at_once(base):
    draft = make_draft(base)
    without(B)(draft)
    one_value(A, float("nan"))(draft)
    put(f"{STEM}.input_layernorm.weight", values((32,)))(draft)
    draft.config["base_model_name_or_path"] = "other/base"
    found = codes(check_files({**draft.files(), "x.py": b""}, base))
    assert found == {"missing-tensor", "nonfinite-value", "overwrites-base", "base-mismatch", "code"}


def test_a_fault_in_every_tensor_does_not_flood(base):
    draft = make_draft(base)
    for number in range(500):
        draft.tensors[f"evil.{number}"] = ("F32", (1,), pack([1.0], "F32"))
    findings = check_files(draft.files(), base).findings
    (found,) = (finding for finding in findings if finding.where == "evil.0")
    assert (found.count, len(found.also)) == (500, 40)
    assert "The same goes for 499 more, such as evil.1." in found.message
    assert len(findings) < 5
