from __future__ import annotations

import json

import pytest

from lora_contract.adapter.check import AdapterFile
from lora_contract.base import BaseFingerprint, BaseTensor, parse_fingerprint
from lora_contract.errors import RegistryError
from lora_contract.fingerprint import check_base_files
from lora_contract.modules import modules_of
from tests.support import adapters
from tests.support.adapters import fingerprint_of_files, reader, values, weights


@pytest.fixture
def files(tmp_path):
    return adapters.read_folder(adapters.make_base(tmp_path / "base", shards=2))


def change_json(files, path, **changes):
    document = json.loads(files[path])
    document.update(changes)
    files[path] = json.dumps(document).encode()


def test_a_base_in_shards(files):
    made = fingerprint_of_files(files)
    assert (made.architecture, made.model_type, made.embedding_rows, made.tied) == (
        "LlamaForCausalLM",
        "llama",
        96,
        False,
    )
    assert (made.tokenizer, made.chat_template) == (None, None)
    assert [tensor.name for tensor in made.tensors] == sorted(tensor.name for tensor in made.tensors)
    assert set(made.files) == set(files)
    assert parse_fingerprint(made.to_bytes()) == made
    for tensor in made.tensors:
        assert tensor.end - tensor.start == 2 * max(1, eval("*".join(map(str, tensor.shape))))
        assert tensor.end <= len(files[tensor.file])


def test_tokenizer_and_template(files):
    plain = fingerprint_of_files(files)
    files["tokenizer.json"] = b'{"version":"1.0"}'
    files["tokenizer_config.json"] = b'{"chat_template": "{{ x }}"}'
    with_tokenizer = fingerprint_of_files(files)
    assert plain.digest != with_tokenizer.digest
    assert with_tokenizer.tokenizer is not None
    inline = with_tokenizer.chat_template
    files["chat_template.jinja"] = b"{{ x }}"
    assert fingerprint_of_files(files).chat_template == inline
    assert fingerprint_of_files(files).tokenizer == with_tokenizer.tokenizer
    files["chat_template.jinja"] = b"{{ y }}"
    assert fingerprint_of_files(files).chat_template != inline


FAULTS = {
    "no config": (lambda f: f.pop("config.json"), "config.json is missing"),
    "config a list": (lambda f: f.update({"config.json": b"[]"}), "not a JSON object"),
    "config twice": (lambda f: f.update({"config.json": b'{"a":1,"a":2}'}), "twice"),
    "remote code": (lambda f: change_json(f, "config.json", auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "remote code deep down": (lambda f: change_json(f, "config.json", text_config={"x": [{"AUTO_MAP": {"a": "x.Y"}}]}), "AUTO_MAP"),
    "code from the Hub": (lambda f: change_json(f, "config.json", trust_remote_code=True), "trust_remote_code"),
    "attention from the Hub": (lambda f: change_json(f, "config.json", _attn_implementation_internal="evil/kernel"), "evil/kernel"),
    "attention of a part": (lambda f: change_json(f, "config.json", attn_implementation={"text_config": "evil/kernel:x"}), "evil/kernel"),
    "generation from the Hub": (lambda f: change_json(f, "config.json", custom_generate="evil/generate"), "custom_generate"),
    "quantization of its own": (lambda f: change_json(f, "config.json", quantization_config={"quant_method": "evil"}), "quant_method"),
    "quantization by a list": (lambda f: change_json(f, "config.json", quantization_config={"quant_method": ["gptq"]}), "quant_method"),
    "no shard": (lambda f: f.pop("model-00002-of-00002.safetensors"), "which model.safetensors.index.json lists"),
    "no index": (lambda f: f.pop("model.safetensors.index.json"), "not a shard"),
    "a pickle": (lambda f: f.update({"pytorch_model.bin": b"x"}), "never opened"),
    "stray weights": (lambda f: f.update({"other.safetensors": weights({})}), "not a shard"),
    "index names too much": (
        lambda f: change_json(
            f, "model.safetensors.index.json",
            weight_map={**json.loads(f["model.safetensors.index.json"])["weight_map"], "ghost": "model-00001-of-00002.safetensors"},
        ),
        "ghost",
    ),
    "index names a path": (lambda f: change_json(f, "model.safetensors.index.json", weight_map={"a": "../x.safetensors"}), "beside it"),
    "index is empty": (lambda f: change_json(f, "model.safetensors.index.json", weight_map={}), "weight_map"),
    "tensor in two shards": (
        lambda f: f.update({"model-00002-of-00002.safetensors": f["model-00001-of-00002.safetensors"]}),
        "is in both",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_base_fault(files, name):
    spoil, words = FAULTS[name]
    spoil(files)
    with pytest.raises(RegistryError) as caught:
        fingerprint_of_files(files)
    assert caught.value.code == "rejected"
    assert words in caught.value.detail


def test_what_configs_on_the_hub_have_is_accepted(files):
    change_json(
        files, "config.json", auto_map=None, trust_remote_code=False, _attn_implementation_autoset=True,
        attn_implementation="flash_attention_2", text_config={"_attn_implementation": "sdpa"}, custom_generate=None,
        quantization_config={"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["Linear"]}}},
    )  # fmt: skip
    assert fingerprint_of_files(files).config["attn_implementation"] == "flash_attention_2"


def test_files_of_a_base(files):
    def found(extra):
        have = {**files, **extra}
        return {
            f.code
            for f in check_base_files([AdapterFile(p, len(d)) for p, d in have.items()], reader(have))
            if f.severity == "error"
        }

    assert found({"README.md": b"x", "generation_config.json": b"{}", "tokenizer.json": b"{}"}) == set()
    assert found({"pytorch_model.bin": b""}) == {"pickle"}
    assert found({"modeling_x.py": b""}) == {"code"}
    assert found({"original/params.json": b"{}"}) == {"file-not-allowed"}


def test_a_quantized_base_has_a_fingerprint():
    tensors = {
        "model.embed_tokens.weight": values((96, 32), dtype="BF16"),
        "model.layers.0.self_attn.q_proj.weight": ("U8", (512, 1), bytes(512)),
        "model.layers.0.self_attn.q_proj.weight.absmax": ("U8", (16,), bytes(16)),
        "model.layers.0.self_attn.q_proj.weight.quant_map": values((16,)),
        "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4": ("U8", (90,), bytes(90)),
        "model.layers.0.self_attn.k_proj.qweight": ("I32", (4, 32), bytes(512)),
        "model.layers.0.self_attn.v_proj.weight": ("I8", (16, 32), bytes(512)),
        "model.layers.0.self_attn.v_proj.SCB": values((16,)),
        "lm_head.weight": values((96, 32), dtype="BF16"),
    }
    made = fingerprint_of_files({"config.json": b'{"model_type": "llama"}', "model.safetensors": weights(tensors)})
    modules = modules_of(made).modules
    q = modules["model.layers.0.self_attn.q_proj"]
    assert (q.kind, q.out, q.in_, q.weight) == ("linear", None, None, None)
    assert modules["model.layers.0.self_attn.k_proj"].kind == "linear"
    assert (modules["model.layers.0.self_attn.v_proj"].out, modules["model.layers.0.self_attn.v_proj"].in_) == (16, 32)
    draft = adapters.Draft(
        {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
            "base_model_name_or_path": adapters.BASE_ID,
        },
        {
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": values((4, 32)),
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": values((32, 4), seed=1),
        },
    )
    assert adapters.check_files(draft.files(), made).findings == []


def base_of(model_type: str, tied: bool = False, **shapes) -> BaseFingerprint:
    tensors = tuple(BaseTensor(name, "BF16", shape, "f", 0, 0) for name, shape in sorted(shapes.items()))
    return BaseFingerprint("", model_type, {}, tensors, {}, None, tied, None, None)


def test_kinds_of_modules():
    modules = modules_of(
        base_of(
            "gpt2",
            tied=True,
            **{
                "transformer.wte.weight": (96, 32),
                "transformer.h.0.attn.c_attn.weight": (32, 96),
                "transformer.h.0.attn.c_attn.bias": (96,),
                "transformer.h.0.ln_1.weight": (32,),
                "visual.patch.weight": (8, 3, 2, 2),
                "block.in_proj_weight": (96, 32),
                "moe.experts.gate_up_proj": (4, 96, 32),
            },
        )
    )
    found = {path: (module.kind, module.out, module.in_) for path, module in modules.modules.items()}
    assert found == {
        "transformer.wte": ("embedding", 96, 32),
        "transformer.h.0.attn.c_attn": ("linear", 96, 32),
        "transformer.h.0.ln_1": ("norm", 32, None),
        "visual.patch": ("conv", 8, 3),
        "block": ("mha", 96, 32),
        "moe.experts": ("experts", None, None),
        "lm_head": ("linear", 96, 32),
    }
    assert modules.modules["transformer.h.0.attn.c_attn"].transposed
    assert modules.modules["lm_head"].weight is modules.modules["transformer.wte"].weight


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
        ("language_model.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"),
        ("model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate"),
        ("visual.blocks.0.attn.qkv", "model.visual.blocks.0.attn.qkv"),
    ],
)
def test_modules_under_another_name(stored, asked):
    modules = modules_of(base_of("x", **{f"{stored}.weight": (8, 4)}))
    found = modules.resolve(asked)
    assert found is not None
    assert found.path == stored
    assert modules.resolve(f"{asked}x") is None
    assert modules.resolve("evil") is None
