"""What people push and must not be refused."""

from __future__ import annotations

import pytest

from lora_contract.errors import RegistryError
from lora_contract.findings import refuse
from tests.support import adapters
from tests.support.adapters import check_files, codes, make_draft, values

STEM = "base_model.model.model.layers"


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("rslora", [False, True])
def test_dtypes_and_scaling(base, dtype, rslora):
    result = check_files(make_draft(base, dtype=dtype, use_rslora=rslora).files(), base)
    assert result.findings == []
    assert result.facts.dtypes == {dtype: 12}


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        ["self_attn.q_proj", "self_attn.v_proj"],
        [f"model.layers.{n}.self_attn.{m}" for n in range(3) for m in ("q_proj", "v_proj")],
        r".*\.(q|v)_proj",
        r"model\.layers\.\d+\.self_attn\.[qv]_proj",
        r"^(?!.*lm_head).*self_attn\.(?:q_proj|v_proj)$",
    ],
)
def test_ways_to_name_targets(base, targets):
    assert check_files(make_draft(base, target_modules=targets).files(), base).findings == []


@pytest.mark.parametrize("word", ["all-linear", "ALL-LINEAR"])
def test_all_linear(base, word):
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert check_files(make_draft(base, targets=names, target_modules=word).files(), base).findings == []
    with_head = make_draft(base, targets=(*names, "lm_head"), target_modules=word)
    assert codes(check_files(with_head.files(), base)) == {"not-targeted"}


def test_layers_and_exclusion(base):
    draft = make_draft(base, layers_to_transform=[0, 2], layers_pattern="layers")
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if ".layers.1." not in name}
    assert check_files(draft.files(), base).findings == []
    draft = make_draft(base, exclude_modules=["layers.1.self_attn.q_proj"])
    del draft.tensors[f"{STEM}.1.self_attn.q_proj.lora_A.weight"]
    del draft.tensors[f"{STEM}.1.self_attn.q_proj.lora_B.weight"]
    assert check_files(draft.files(), base).findings == []


def test_patterns_of_rank_and_alpha(base):
    draft = make_draft(base, rank_pattern={r"^model\.layers\.0\..*q_proj": 2, "v_proj": 6}, alpha_pattern={"v_proj": 3})
    for name, (_, shape, _) in list(draft.tensors.items()):
        rank = 6 if "v_proj" in name else 2 if "layers.0." in name else 4
        shape = (rank, shape[1]) if "lora_A" in name else (shape[0], rank)
        draft.tensors[name] = values(shape, seed=name)
    result = check_files(draft.files(), base)
    assert result.findings == []
    assert result.facts.ranks == {"2": 1, "4": 2, "6": 3}


def test_side_files(base):
    extra = {
        "README.md": b"# A model card\n",
        "LICENSE": b"Apache",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "special_tokens_map.json": b"{}",
        "tokenizer.model": b"\n\x0e\n\x05<unk>",
        "chat_template.jinja": b"{{ messages }}",
        "merges.txt": b"#version: 0.2\nq u\n",
        "trainer_state.json": b'{"log_history": [{"loss": 1.5}]}',
    }
    assert check_files({**make_draft(base).files(), **extra}, base).findings == []


def test_keys_of_other_versions_and_trainers(base):
    draft = make_draft(
        base,
        unsloth_fixed=True,
        loftq_config={},
        eva_config=None,
        bdlora=None,
        auto_mapping={"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama.modeling_llama"},
    )
    assert check_files(draft.files(), base).findings == []


@pytest.mark.parametrize("name", ["/home/me/llama", "./llama", "../llama", "~/llama", "C:\\models\\llama", "a/b/c"])
def test_a_local_path_is_noted(base, name):
    findings = check_files(make_draft(base, base_model_name_or_path=name).files(), base).findings
    assert [(finding.code, finding.severity) for finding in findings] == [("base-local-path", "note")]


def test_another_base_is_refused_once_with_both_ways_out(base):
    files = make_draft(base, base_model_name_or_path="other/base").files()
    result = check_files(files, base)
    with pytest.raises(RegistryError) as caught:
        refuse(result.findings)
    assert caught.value.code == "base-mismatch"
    assert "base alias" in caught.value.hint
    assert "--accept-base" in caught.value.hint
    assert check_files(files, base, accept_base=True).accepted
    assert check_files(files, base, aliases=["Other/Base"]).findings == []


def test_copies_of_the_base(base, base_folder):
    files = adapters.read_folder(base_folder)
    source = next(tensor for tensor in base.tensors if tensor.name == "model.embed_tokens.weight")
    data = files[source.file][source.start : source.end]
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    read_base = adapters.base_reader(base_folder)
    draft = make_draft(base, target_modules=["q_proj", "v_proj", "embed_tokens"])
    draft.tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = values((4, 96))
    draft.tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = values((32, 4), seed=1)
    assert check_files(draft.files(), base, read_base=read_base).findings == []
    draft.tensors[name] = ("BF16", (96, 32), data)
    assert check_files(draft.files(), base, read_base=read_base).findings == []
    wide = bytearray(2 * len(data))
    wide[2::4], wide[3::4] = data[0::2], data[1::2]
    draft.tensors[name] = ("F32", (96, 32), bytes(wide))
    assert check_files(draft.files(), base, read_base=read_base).findings == []
    wide[0] ^= 1  # the lowest bit of one element
    draft.tensors[name] = ("F32", (96, 32), bytes(wide))
    assert codes(check_files(draft.files(), base, read_base=read_base)) == {"overwrites-base"}
    refused = check_files(draft.files(), base)
    assert codes(refused) == {"overwrites-base"}
    assert "without its weights" in refused.findings[-1].message


def test_modules_to_save_and_task_heads(base):
    draft = make_draft(base, modules_to_save=["lm_head", "model.norm"])
    draft.tensors["base_model.model.lm_head.weight"] = values((96, 32))
    draft.tensors["base_model.model.model.norm.weight"] = values((32,))
    result = check_files(draft.files(), base)
    assert result.findings == []
    assert (result.facts.saved_tensors, result.facts.has_embeddings) == (2, True)
    draft = make_draft(base, modules_to_save=["classifier", "score"], task_type="SEQ_CLS")
    draft.tensors["base_model.model.score.weight"] = values((2, 32))
    assert check_files(draft.files(), base).findings == []


def test_tied_output_layer(tmp_path):
    folder = adapters.make_base(tmp_path / "tied", tied=True)
    tied = adapters.fingerprint_of(folder)
    assert tied.tied
    draft = make_draft(tied, target_modules=["q_proj", "v_proj", "lm_head"])
    draft.tensors["base_model.model.lm_head.lora_A.weight"] = values((4, 32))
    draft.tensors["base_model.model.lm_head.lora_B.weight"] = values((96, 4), seed=1)
    assert check_files(draft.files(), tied).findings == []


def test_rank_zero_modules_of_adalora(base):
    draft = make_draft(base, peft_type="ADALORA", init_r=4, target_r=2, rank_pattern={})
    draft.config["rank_pattern"] = {
        name.removeprefix("base_model.model.").replace("lora_A.weight", "lora_E"): [False] * 4
        if "layers.0.self_attn.q_proj" in name
        else [True, False, True, True]
        for name in draft.tensors
        if "lora_A" in name
    }
    tensors = {}
    for name, (_, shape, _) in draft.tensors.items():
        rank = 0 if "layers.0.self_attn.q_proj" in name else 3
        stem = name.removesuffix(".weight")
        tensors[stem] = values((rank, shape[1]) if "lora_A" in name else (shape[0], rank), seed=name)
        tensors[stem.replace("lora_A", "lora_E").replace("lora_B", "lora_E")] = values((rank, 1), seed=stem)
    draft.tensors = tensors
    result = check_files(draft.files(), base)
    assert result.findings == []
    assert result.facts.ranks == {"0": 1, "3": 5}
    draft.config["rank_pattern"] = {}
    assert codes(check_files(draft.files(), base)) == {"rank-mismatch"}


def prompt(base, **config):
    document = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": 5,
        "base_model_name_or_path": adapters.BASE_ID,
        **config,
    }
    return adapters.Draft(document, {"prompt_embeddings": values((5, 32))})


def test_virtual_tokens(base):
    assert check_files(prompt(base).files(), base).findings == []
    prefix = prompt(base, peft_type="PREFIX_TUNING", num_layers=3, token_dim=16)
    prefix.tensors["prompt_embeddings"] = values((5, 3 * 2 * 16))
    assert check_files(prefix.files(), base).findings == []
    for spoiled in (
        prompt(base, num_virtual_tokens=6),
        prompt(base, peft_type="PREFIX_TUNING", num_layers=3, token_dim=16),
        prompt(base, peft_type="PREFIX_TUNING", num_layers=1, token_dim=16),
    ):
        assert codes(check_files(spoiled.files(), base)) == {"shape-mismatch"}
    renamed = prompt(base)
    renamed.tensors["base_model.model.lm_head.weight"] = values((96, 32))
    assert codes(check_files(renamed.files(), base)) == {"overwrites-base"}


def test_large_values_are_a_warning(base):
    draft = make_draft(base)
    for name, (_, shape, _) in list(draft.tensors.items()):
        draft.tensors[name] = values(shape, seed=name, scale=500)
    result = check_files(draft.files(), base)
    assert result.accepted
    assert {finding.code for finding in result.findings} == {"large-update"}
