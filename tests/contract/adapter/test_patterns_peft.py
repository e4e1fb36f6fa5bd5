"""Against PEFT itself: what it saves passes the check, and our reading of its patterns and scales is its own."""

from __future__ import annotations

import json
import math
import os
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_contract.adapter.config import parse_config
from lora_contract.adapter.patterns import pattern_key, targets
from lora_contract.adapter.scaling import alpha_of, lora_scale, rank_of
from lora_contract.adapter.types import TYPES
from tests.support import adapters
from tests.support.adapters import check_files, codes, read_draft, read_folder, values

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    import torch
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ["q_proj", "v_proj", "down_proj"]
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
ON_NAMES = {"target_modules": NAMES}
RANK_4 = {"r": 4, **ON_NAMES}
OPTIONS = {
    "LORA": RANK_4,
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10, **ON_NAMES},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "BEFT": ON_NAMES,
    "BOFT": {"boft_block_size": 4, **ON_NAMES},
    "C3A": {"block_size": 8, **ON_NAMES},
    "CARTRIDGE": {"num_virtual_tokens": 3},
    "CPT": {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "DEFT": RANK_4,
    "DELORA": RANK_4,
    "FOURIERFT": {"n_frequency": 10, **ON_NAMES},
    "FROD": ON_NAMES,
    "GLORA": RANK_4,
    "GRALORA": {"gralora_k": 2, **RANK_4},
    "HIRA": RANK_4,
    "HRA": RANK_4,
    "IA3": {"feedforward_modules": ["down_proj"], **ON_NAMES},
    "LILY": RANK_4,
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "LOHA": RANK_4,
    "LOKR": RANK_4,
    "MISS": RANK_4,
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3, "num_tasks": 2, "num_ranks": 1},
    "OFT": {"oft_block_size": 8, "r": 0, **ON_NAMES},
    "OSF": ON_NAMES,
    "PEANUT": RANK_4,
    "POLY": RANK_4,
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "PSOFT": RANK_4,
    "PVERA": RANK_4,
    "P_TUNING": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "RANDLORA": RANK_4,
    "ROAD": {"group_size": 8, **ON_NAMES},
    "SHADOW": RANK_4,
    "SHIRA": {"r": 2, **ON_NAMES},
    "SUPERTUNING": {"sparsity": 0.9, **ON_NAMES},
    "TINYLORA": ON_NAMES,
    "TRAINABLE_TOKENS": {"token_indices": [1, 5]},
    "UNILORA": RANK_4,
    "VBLORA": {"num_vectors": 8, "vector_length": 8, **RANK_4},
    "VERA": RANK_4,
    "WAVEFT": {"n_frequency": 10, **ON_NAMES},
}
# Need scikit-learn, or adapters of their own: not made here.
NOT_MADE = {"ADAMSS", "XLORA"}

EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
LORA = {
    "dora": ("plain", {"use_dora": True, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "rslora": ("plain", {"use_rslora": True, **ON_NAMES}),
    "embedding": ("plain", {"target_modules": ["q_proj", "embed_tokens"]}),
    "output layer, tied": ("tied", {"target_modules": ["q_proj", "lm_head"]}),
    "embedding, tied": ("tied", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    "saved, tied": (
        "tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "saved": ("plain", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "tokens": ("plain", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 95]}),
    "tokens of two": (
        "plain",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}},
    ),
    "bias all": ("biased", {"target_modules": ["q_proj"], "bias": "all"}),
    "bias lora_only": ("biased", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "lora_bias": ("biased", {"target_modules": ["q_proj"], "lora_bias": True}),
    "all linear": ("plain", {"target_modules": "all-linear", "exclude_modules": ["k_proj"]}),
    "pattern": ("plain", {"target_modules": r"model\.layers\.[01]\.self_attn\.(q|v)_proj"}),
    "one layer": ("plain", {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    "rank and alpha": ("plain", {**ON_NAMES, "rank_pattern": {r"layers\.0\..*": 2}, "alpha_pattern": {"v_proj": 3}}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "experts": ("mixtral", EXPERTS),
    "experts, all linear": ("mixtral", {"target_modules": "all-linear"}),
}


def make_model(kind: str):
    torch.manual_seed(0)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        )
    if kind == "mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, num_local_experts=4))
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=kind == "tied", attention_bias=kind == "biased")
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def of(kind: str):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            make_model(kind).save_pretrained(folder)
            made[kind] = (adapters.fingerprint_of(folder), adapters.base_reader(folder))
        return made[kind]

    return of


def save(kind: str, config, folder) -> None:
    """Attach, move every trained value, save."""
    model = make_model(kind)
    model.name_or_path = adapters.BASE_ID
    torch.manual_seed(1)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.02)
    model.save_pretrained(folder)


def test_every_type_is_known():
    known = {name.value for name in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert known - set(TYPES) == set()
    assert known == set(OPTIONS) | NOT_MADE


@pytest.mark.parametrize("peft_type", sorted(OPTIONS))
def test_what_peft_saves_is_accepted(bases, tmp_path, peft_type):
    base, read_base = bases("plain")
    config_type = next(kind for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name.value == peft_type)
    save(
        "plain",
        config_type(task_type="CAUSAL_LM", base_model_name_or_path=adapters.BASE_ID, **OPTIONS[peft_type]),
        tmp_path,
    )
    result = check_files(read_folder(tmp_path), base, read_base=read_base)
    assert result.findings == []
    draft = read_draft(tmp_path)
    draft.tensors["base_model.model.model.layers.1.post_attention_layernorm.weight"] = values((32,))
    found = codes(check_files(draft.files(), base, read_base=read_base))
    assert found & {"overwrites-base", "unknown-tensor"}


@pytest.mark.parametrize("name", LORA)
def test_lora_of_every_form_is_accepted(bases, tmp_path, name):
    kind, options = LORA[name]
    base, read_base = bases(kind)
    config = peft.LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=adapters.BASE_ID, **{"r": 4, **options})
    save(kind, config, tmp_path)
    result = check_files(read_folder(tmp_path), base, read_base=read_base)
    assert [finding.code for finding in result.findings] == (["replaces-biases"] if name.startswith("bias") else [])
    assert result.accepted


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_inits_that_change_the_base_are_refused(bases, tmp_path, init):
    base, read_base = bases("plain")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=adapters.BASE_ID,
        r=4,
        target_modules=NAMES,
        init_lora_weights=init,
    )
    save("plain", config, tmp_path)
    assert codes(check_files(read_folder(tmp_path), base, read_base=read_base)) == {"init-changes-base"}


PATHS = [
    "lm_head",
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.11.mlp.down_proj",
    "model.layers.1.mlp.experts.3.w1",
    "transformer.h.2.attn.c_attn",
    "h.2.attn.c_attn",
]
KEYS = st.sampled_from(
    ["q_proj", "layers.1.mlp", "layers.1", r"layers\.1\..*", "v_proj|down_proj", "model.layers.0.self_attn.q_proj",
     r"^model\.layers\.\d+\.self_attn\.q_proj", "w1", ".*proj", "layers.1.self_attn.v_proj$", "h.2", "c.attn", "(q|v)_proj"]
)  # fmt: skip


def config_of(**keys):
    return parse_config(json.dumps({"peft_type": "LORA", **keys}).encode())


@given(st.lists(KEYS, max_size=4, unique=True), st.sampled_from(PATHS))
def test_pattern_keys_are_pefts(keys, path):
    ours = pattern_key(keys)(path)
    theirs = get_pattern_key(keys, path)
    assert theirs == (path if ours is None else ours)


TARGETS = st.one_of(
    st.lists(
        st.sampled_from(["q_proj", "v_proj", "self_attn.q_proj", "lm_head", "w1", "c_attn", "mlp.down_proj"]),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    st.sampled_from([r".*proj", r"model\..*\.(q|v)_proj", "lm_head", r"(?!lm).*", r".*\.h\.\d+\..*"]),
)


@settings(max_examples=400)
@given(
    TARGETS,
    st.one_of(st.none(), TARGETS),
    st.one_of(st.none(), st.integers(0, 3), st.lists(st.integers(0, 3), max_size=2)),
    st.one_of(st.none(), st.sampled_from(["layers", "h", ["h", "layers"], ""])),
    st.one_of(st.none(), st.lists(st.sampled_from(["lm_head", "self_attn", "embed_tokens"]), max_size=2)),
    st.sampled_from(PATHS),
)
def test_targets_are_pefts(target, exclude, layers, pattern, saved, path):
    keys = {
        "target_modules": target,
        "exclude_modules": exclude,
        "layers_to_transform": layers,
        "layers_pattern": pattern,
        "modules_to_save": saved,
    }
    found = check_target_module_exists(SimpleNamespace(target_parameters=None, **keys), path)
    assert targets(config_of(**keys))(path) == (bool(found) and type(found).__name__ != "_ExcludedModule")


@pytest.mark.parametrize("rslora", [False, True])
def test_scales_are_pefts(rslora):
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=NAMES,
        rank_pattern={r"layers\.0\..*q_proj": 2, "q_proj": 3}, alpha_pattern={"v_proj": 5},
    )  # fmt: skip
    model = peft.get_peft_model(make_model("plain"), config)
    keys = {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": rslora,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
    }
    ours = config_of(target_modules=NAMES, **keys)
    seen = 0
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            path = name.removeprefix("base_model.model.")
            assert lora_scale(ours, path) == pytest.approx(module.scaling["default"], rel=1e-15)
            assert rank_of(ours, path) == module.r["default"]
            assert alpha_of(ours, path) == module.lora_alpha["default"]
            seen += 1
    assert seen == 6


def test_scale_of_adalora():
    config = parse_config(
        json.dumps({"peft_type": "ADALORA", "init_r": 12, "r": 8, "lora_alpha": 32, "target_modules": NAMES}).encode()
    )
    assert math.isclose(lora_scale(config, "model.layers.0.self_attn.q_proj"), 32 / (12 + 1e-5), rel_tol=1e-15)
